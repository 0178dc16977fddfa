// Bytes of the protocol: docs/protocol.md.

const text = new TextDecoder();

/** Header and picture of a binary message. Throws on anything that is no frame. */
export function unpackFrame(buffer) {
  const view = new DataView(buffer);
  const length = view.getUint32(0);
  if (length > buffer.byteLength - 4) throw new Error(`frame header of ${length} bytes in ${buffer.byteLength}`);
  const header = JSON.parse(text.decode(new Uint8Array(buffer, 4, length)));
  if (header.type !== "frame") throw new Error(`binary message of type ${header.type}`);
  return { header, picture: new Uint8Array(buffer, 4 + length) };
}

/** The websocket of the page's own server. */
export function socketUrl(location) {
  return `${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}/ws`;
}
