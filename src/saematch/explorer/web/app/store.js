"use strict";
// The data files: classic scripts that call saematch.receive, loaded when they are needed.
// src/saematch/explorer/data.py lists them, blob.py describes their format.

var saematch = { NONE: -1 };

(() => {
  const { folder } = document.body.dataset;
  const waiting = new Map(); // name -> function that takes the file's value
  const files = new Map(); // name -> promise of the unpacked value
  const KINDS = {
    uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int8: Int8Array, int16: Int16Array,
  };
  const POWERS = Array.from({ length: 129 }, (_, i) => Number(`1e${i}`));

  saematch.receive = (name, value) => waiting.get(name)?.(value);

  // Return a promise of a data file: an object with typed arrays and JSON values.
  saematch.load = (name) => {
    if (!files.has(name)) files.set(name, fetchScript(name).then(unpack));
    return files.get(name);
  };

  function fetchScript(name) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      waiting.set(name, resolve);
      script.src = `${folder}/${name.split("/").map(encodeURIComponent).join("/")}.js`;
      script.onload = () => {
        if (waiting.delete(name)) script.remove();
        reject(new Error(`${folder}/${name}.js is damaged: make the page again with saematch show`));
      };
      script.onerror = () =>
        reject(new Error(`${folder}/${name}.js is missing: reload the page, or make it again with saematch show`));
      document.head.append(script);
    });
  }

  async function unpack(value) {
    if (typeof value !== "string") return value;
    const stream = new DecompressionStream("gzip");
    const writer = stream.writable.getWriter(); // half the time of a piped Blob
    const written = Promise.all([writer.write(bytesOf(value)), writer.close()]);
    const [buffer] = await Promise.all([new Response(stream.readable).arrayBuffer(), written]);
    const content = new Uint8Array(buffer);
    const length = new DataView(content.buffer).getUint32(0, true);
    const utf8 = new TextDecoder();
    let place = 4 + length;
    const parts = {};
    for (const [name, kind, n] of JSON.parse(utf8.decode(content.subarray(4, place)))) {
      const size = kind === "json" ? n : kind === "decimal" ? 3 * n : n * KINDS[kind].BYTES_PER_ELEMENT;
      const part = content.subarray(place, place + size);
      if (kind === "json") parts[name] = JSON.parse(utf8.decode(part));
      else parts[name] = kind === "decimal" ? decimals(part, n) : unsorted(part, KINDS[kind], n);
      place += size;
    }
    return parts;
  }

  // Return the bytes of a text with 7 bits in each character. The last byte is the number of
  // bytes that the content does not need.
  function bytesOf(text) {
    const bytes = new Uint8Array((text.length * 7) >> 3);
    let place = 0;
    let bits = 0;
    for (let i = 0; i < text.length; i++) {
      bits = (bits << 7) | text.charCodeAt(i);
      const shift = 7 - (i & 7); // bits that are left for the next byte
      if (shift < 7) bytes[place++] = bits >> shift;
    }
    return bytes.subarray(0, bytes.length - bytes.at(-1));
  }

  // Return numbers of which the bytes have the mantissas (16 bits) and the exponents of 10 (8 bits).
  function decimals(bytes, n) {
    const mantissas = unsorted(bytes.subarray(0, 2 * n), Int16Array, n);
    const exponents = unsorted(bytes.subarray(2 * n), Int8Array, n);
    const numbers = new Float64Array(n);
    for (let i = 0; i < n; i++) {
      const [mantissa, exponent] = [mantissas[i], exponents[i]];
      if (mantissa === -32768) numbers[i] = NaN;
      else if (Math.abs(mantissa) === 32767) numbers[i] = mantissa * Infinity;
      // Division by a power of ten gives the number that the decimal digits mean, such as 0.731
      else numbers[i] = exponent < 0 ? mantissa / POWERS[-exponent] : mantissa * POWERS[exponent];
    }
    return numbers;
  }

  // Return an array whose bytes are sorted by their place in an element.
  function unsorted(bytes, Kind, n) {
    const width = Kind.BYTES_PER_ELEMENT;
    const mixed = new Uint8Array(bytes.length);
    for (let byte = 0; byte < width; byte++)
      for (let i = 0; i < n; i++) mixed[i * width + byte] = bytes[byte * n + i];
    return new Kind(mixed.buffer);
  }
})();
