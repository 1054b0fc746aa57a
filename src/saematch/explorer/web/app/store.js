"use strict";
// The data files: classic scripts that call saematch.receive, loaded when they are needed.
// src/saematch/explorer/data.py lists them, blob.py describes their format.

var saematch = { NONE: -1 };

(() => {
  const waiting = new Map(); // name -> function that takes the file's value
  const files = new Map(); // name -> promise of the unpacked value
  const KINDS = {
    uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int32: Int32Array,
    float32: Float32Array, float64: Float64Array,
  };

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
      script.src = `data/${name.split("/").map(encodeURIComponent).join("/")}.js`;
      script.onload = () => {
        if (waiting.delete(name)) script.remove();
        reject(new Error(`data/${name}.js is damaged: make the page again with saematch show`));
      };
      script.onerror = () =>
        reject(new Error(`data/${name}.js is missing: make the page again with saematch show`));
      document.head.append(script);
    });
  }

  async function unpack(value) {
    if (typeof value !== "string") return value;
    const text = atob(value);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new DecompressionStream("gzip");
    const writer = stream.writable.getWriter(); // half the time of a piped Blob
    const written = Promise.all([writer.write(bytes), writer.close()]);
    const [buffer] = await Promise.all([new Response(stream.readable).arrayBuffer(), written]);
    const content = new Uint8Array(buffer);
    const length = new DataView(content.buffer).getUint32(0, true);
    const utf8 = new TextDecoder();
    let place = 4 + length;
    const parts = {};
    for (const [name, kind, n] of JSON.parse(utf8.decode(content.subarray(4, place)))) {
      const size = kind === "json" ? n : n * KINDS[kind].BYTES_PER_ELEMENT;
      const part = content.subarray(place, place + size);
      parts[name] = kind === "json" ? JSON.parse(utf8.decode(part)) : unsorted(part, KINDS[kind], n);
      place += size;
    }
    return parts;
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
