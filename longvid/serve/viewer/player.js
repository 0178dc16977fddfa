// Playback with a jitter buffer. Frames are shown at their time; when they come slower than that, the video slows down
// instead of stuttering, and when there are none it waits.

const FIRST_TARGET = 0.3; // seconds of video to gather before it plays
const LONGEST_TARGET = 1.2;
const SLOWEST = 0.3;

export class Player {
  /** shown(header, urgent) is called for each frame on the canvas, drop(header) for each that is skipped. */
  constructor(canvas, shown) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.shown = shown;
    this.reset(0, 16);
    requestAnimationFrame(this.#loop);
  }

  /** A new stream whose next frame is `first`. */
  reset(first, fps) {
    for (const frame of this.queue ?? []) frame.image.close();
    this.queue = [];
    this.next = first;
    this.lost = 0;
    this.fps = fps;
    this.position = null; // media time, null until the first frame is shown
    this.rate = 1;
    this.waiting = true;
    this.held = false;
    this.ended = false;
    this.target = FIRST_TARGET;
    this.times = [];
  }

  /** The same stream is sent again from `first`; what waits in the buffer stays. */
  replay(first) {
    this.next = Math.max(first, this.queue.length ? this.queue.at(-1).header.id + 1 : first);
  }

  push({ header, image }) {
    if (header.id < this.next) return image.close(); // sent again, seen already
    this.lost += header.id - this.next; // never, unless the server broke its word
    this.next = header.id + 1;
    this.queue.push({ header, image });
  }

  /** Seconds of video that wait to be shown. */
  get buffered() {
    return this.queue.length / this.fps;
  }

  /** Frames a second on the canvas, over the last two seconds. */
  get shownFps() {
    const since = performance.now() - 2000;
    this.times = this.times.filter((time) => time > since);
    return this.times.length / 2;
  }

  /** Drop frames before `id` that were not shown: a cut has made them stale. */
  skipTo(id) {
    const stale = this.queue.findIndex((frame) => frame.header.id >= id);
    const dropped = this.queue.splice(0, stale < 0 ? this.queue.length : stale);
    for (const frame of dropped) frame.image.close();
    if (dropped.length) {
      this.shown(dropped.at(-1).header, true, true);
      this.position = null;
    }
  }

  #loop = (now) => {
    requestAnimationFrame(this.#loop);
    const elapsed = Math.min(0.25, (now - (this.before ?? now)) / 1000);
    this.before = now;
    const first = this.position === null; // even a paused video shows where it stands
    if ((this.held && !first) || !this.queue.length) {
      if (!this.held && !this.ended && !first && !this.waiting) this.#underrun();
      return;
    }
    if (this.waiting && !this.held) {
      if (this.buffered < this.target && !this.ended) return;
      this.waiting = false;
    }
    if (first) this.position = this.queue[0].header.pts;
    else this.position += elapsed * this.#speed();
    let frame = null;
    while (this.queue.length && this.queue[0].header.pts <= this.position + 1e-6) {
      frame?.image.close();
      frame = this.queue.shift();
    }
    if (frame) this.#draw(frame);
  };

  #speed() {
    const wanted = this.ended ? 1 : Math.min(1, Math.max(SLOWEST, this.buffered / this.target));
    this.rate += (wanted - this.rate) * 0.08;
    return this.rate;
  }

  #underrun() {
    this.waiting = true;
    this.target = Math.min(LONGEST_TARGET, this.target * 1.25);
  }

  #draw({ header, image }) {
    if (this.canvas.width !== header.width || this.canvas.height !== header.height) {
      this.canvas.width = header.width;
      this.canvas.height = header.height;
    }
    this.context.drawImage(image, 0, 0);
    image.close();
    this.times.push(performance.now());
    this.shown(header, this.queue.length < 2, false);
  }
}
