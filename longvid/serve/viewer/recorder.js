// Records the canvas, that is what was seen, for download.

const LARGEST = 256 * 2 ** 20;
// WebM first: it plays up to wherever it was cut.
const TYPES = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"];

export class Recorder {
  constructor(canvas) {
    this.canvas = canvas;
    this.type =
      typeof MediaRecorder === "undefined" ? undefined : TYPES.find((type) => MediaRecorder.isTypeSupported(type));
    this.clear();
  }

  get supported() {
    return this.type !== undefined;
  }

  /** Forget what was recorded. */
  clear() {
    if (this.recorder && this.recorder.state !== "inactive") this.recorder.stop();
    this.recorder = null;
    this.parts = [];
    this.bytes = 0;
    this.full = false;
  }

  /** Record from now on, behind what is there. */
  run() {
    if (!this.supported || this.full) return;
    if (this.recorder?.state === "paused") return this.recorder.resume();
    if (this.recorder) return;
    const recorder = new MediaRecorder(this.canvas.captureStream(), {
      mimeType: this.type,
      videoBitsPerSecond: 4_000_000,
    });
    this.recorder = recorder;
    recorder.ondataavailable = ({ data }) => {
      if (this.recorder !== recorder) return;
      this.parts.push(data);
      this.bytes += data.size;
      if (this.bytes > LARGEST && !this.full) {
        this.full = true;
        recorder.stop();
      }
    };
    recorder.start(1000);
  }

  hold() {
    if (this.recorder?.state === "recording") this.recorder.pause();
  }

  /** What was recorded so far, or null. */
  async take() {
    const recorder = this.recorder;
    if (!recorder) return null;
    if (recorder.state !== "inactive") {
      await new Promise((resolve) => {
        recorder.addEventListener("dataavailable", resolve, { once: true });
        recorder.requestData();
      });
    }
    return this.bytes ? new Blob(this.parts, { type: this.type.split(";")[0] }) : null;
  }
}
