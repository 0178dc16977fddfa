// One websocket after another to the same server: opens again by itself, and says how it stands.

const FIRST_WAIT = 500;
const LONGEST_WAIT = 8000;
const PING_EVERY = 5000;

/**
 * Events: "state" (detail: connecting, open, waiting to open again, rest, elsewhere), "message" (JSON),
 * "frame" (ArrayBuffer), "latency" (milliseconds). needed() says whether a lost connection is opened again.
 */
export class Connection extends EventTarget {
  constructor(url) {
    super();
    this.url = url;
    this.needed = () => true;
    this.state = "rest";
    this.wait = FIRST_WAIT;
    this.socket = null;
    this.retry = null;
    this.pinged = [];
  }

  open() {
    clearTimeout(this.retry);
    if (this.socket) return;
    this.#tell("connecting");
    const socket = new WebSocket(this.url);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.pinged = [];
    socket.onmessage = ({ data }) => {
      if (typeof data !== "string") return this.#emit("frame", data);
      const message = JSON.parse(data);
      if (message.type === "hello") {
        this.wait = FIRST_WAIT;
        this.#tell("open");
        this.ping();
      } else if (message.type === "pong" && this.pinged.length) {
        this.#emit("latency", performance.now() - this.pinged.shift());
        return;
      }
      this.#emit("message", message);
    };
    socket.onclose = ({ code }) => {
      if (this.socket !== socket) return;
      this.socket = null;
      clearInterval(this.pinger);
      if (code === 4001) return this.#tell("elsewhere");
      if (!this.needed()) return this.#tell("rest");
      this.#tell("waiting");
      this.retry = setTimeout(() => this.open(), this.wait * (0.75 + Math.random() / 2));
      this.wait = Math.min(2 * this.wait, LONGEST_WAIT);
    };
    clearInterval(this.pinger);
    this.pinger = setInterval(() => this.ping(), PING_EVERY);
  }

  /** Do not wait any longer before opening again. */
  hurry() {
    if (this.state === "waiting") {
      this.wait = FIRST_WAIT;
      this.open();
    }
  }

  ping() {
    if (this.send({ type: "ping" })) this.pinged.push(performance.now());
  }

  /** Whether the message went out. Nothing does before the server's hello. */
  send(message) {
    if (this.state !== "open" || this.socket.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  #tell(state) {
    if (this.state === state) return;
    this.state = state;
    this.#emit("state", state);
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
