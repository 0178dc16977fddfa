// Pictures to bitmaps, in order: stills by the browser's image decoder, h264 by WebCodecs.

const CODEC = "avc1.42E01F"; // constrained baseline

/** Formats that this browser can show. WebCodecs needs a secure context: https, or a loopback address. */
export function supportedFormats(offered) {
  return offered.filter((format) => format !== "h264" || typeof VideoDecoder !== "undefined");
}

/** Calls show({header, image}) for each frame, in order; lose(error) when a stream cannot be decoded. */
export class Decoder {
  constructor(show, lose) {
    this.show = show;
    this.lose = lose;
    this.chain = Promise.resolve();
    this.generation = 0;
    this.headers = new Map();
    this.stream = null;
  }

  /** Forget what is under way: a new session, or the same one sent again from a key. */
  reset() {
    this.generation++;
    this.chain = Promise.resolve();
    this.headers.clear();
    if (this.stream && this.stream.state !== "closed") this.stream.close();
    this.stream = null;
  }

  decode(header, picture) {
    if (header.format === "h264") return this.#decodeStream(header, picture);
    const generation = this.generation;
    const image = createImageBitmap(new Blob([picture], { type: `image/${header.format}` }));
    this.chain = this.chain.then(() => image).then(
      (bitmap) => (generation === this.generation ? this.show({ header, image: bitmap }) : bitmap.close()),
      (error) => generation === this.generation && this.lose(error),
    );
  }

  #decodeStream(header, picture) {
    if (!this.stream) {
      if (!header.key) return; // nothing to decode it from
      const generation = this.generation;
      this.stream = new VideoDecoder({
        output: (image) => {
          const found = this.headers.get(image.timestamp);
          this.headers.delete(image.timestamp);
          if (found && generation === this.generation) this.show({ header: found, image });
          else image.close();
        },
        error: (error) => generation === this.generation && this.lose(error),
      });
      this.stream.configure({ codec: CODEC, optimizeForLatency: true });
    }
    const timestamp = Math.round(header.pts * 1e6);
    this.headers.set(timestamp, header);
    this.stream.decode(new EncodedVideoChunk({ type: header.key ? "key" : "delta", timestamp, data: picture }));
  }
}
