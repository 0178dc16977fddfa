"""Watch a video while it is made: a websocket server, its protocol, and a viewer page. See docs/protocol.md."""
