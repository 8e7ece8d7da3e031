// Encoder of text for a crepe_dist model: the methods encode, inputs and hashed of crepe_runtime.py's Classifier.
//
//     const encoder = new Encoder(about);             // about: the model's metadata, parsed
//     const codes = encoder.encode("a text");         // Uint8Array [feature_len]
//     encoder.charactersCut("a text");                // number of characters that were not read
//     encoder.read(codes);                            // number of known characters, without spaces
//     encoder.inputs(codes);                          // {name: [type, data, shape]} for a batch of one
//
// A character is a code point, as in Python. A JavaScript string has one or two UTF-16 code units for each.

const BLANK = 255;  // code of unknown characters and of padding

export class Encoder {
  constructor(about) {
    this.about = about;
    this.table = new Map();  // character → its codes, independent of the browser's Unicode version
    about.characters.forEach((characters, code) => {
      for (const character of characters) this.table.set(character, [code]);
    });
    for (const [character, codes] of Object.entries(about.spellings)) this.table.set(character, codes);
    [this.space] = this.table.get(" ");
  }

  // Codes of a text, at most feature_len, and the positions of their characters; -1 for the seam of a text that is cut.
  places(text) {
    const {feature_len: length, kept: [head, tail]} = this.about, characters = [...text];
    const codesOf = (character, place) => (this.table.get(character) ?? [BLANK]).map((code) => [code, place]);
    const isOut = (place) => place >= length && place < characters.length - length;  // only the ends can be read
    const all = characters.flatMap((character, place) => isOut(place) ? [] : codesOf(character, place));
    if (all.length <= length) return all;
    return [...all.slice(0, head), ...Array(length - head - tail).fill([BLANK, -1]), ...all.slice(all.length - tail)];
  }

  // Mode notebook reads in order, the other modes in reverse.
  encode(text) {
    const read = this.places(text).map(([code]) => code), codes = new Uint8Array(this.about.feature_len).fill(BLANK);
    codes.set(this.about.mode === "notebook" ? read : read.reverse());
    return codes;
  }

  charactersCut(text) {
    const read = new Set(this.places(text).map(([, place]) => place));
    read.delete(-1);
    return [...text].length - read.size;
  }

  read(codes) {
    return codes.reduce((count, code) => count + (code < this.about.counted && code !== this.space), 0);
  }

  inputs(codes) {
    const {longest, buckets, reach, rows, stride = 1} = this.about;
    if (longest === undefined) return {codes: ["uint8", codes, [1, codes.length]]};
    const end = 1 + codes.findLastIndex((code) => code !== BLANK), positions = Math.ceil((end + 2) / stride);
    const text = new Uint8Array(positions * stride).fill(BLANK);
    text.set(codes.subarray(0, end), 1);
    if (end) text[0] = text[end + 1] = this.about.characters.length;  // before the first and after the last one
    const distinct = new Set(this.hashed(text, longest, buckets));
    distinct.delete(buckets);
    const shape = [1, Math.max(1, distinct.size)];
    const padded = new Int32Array(shape[1]), own = new Float32Array(shape[1]).fill(1, 0, distinct.size);
    padded.set([...distinct]);
    const inputs = {buckets: ["int32", padded, shape], own: ["float32", own, shape]};
    if (reach) inputs.places = ["int32", this.hashed(text, reach, rows), [1, positions, stride * reach]];
    return inputs;
  }

  // Rows of the n-grams of 1 to `longest` known characters at each position; `rows` where there is none.
  hashed(codes, longest, rows) {
    const hashes = new Int32Array(codes.length * longest).fill(rows), size = BigInt(rows);
    for (let start = 0; start < codes.length; start++) {
      let key = 0n;
      for (let n = 0; n < longest && start + n < codes.length && codes[start + n] !== BLANK; n++) {
        key = key * 257n + BigInt(codes[start + n] + 1);
        hashes[start * longest + n] = Number((mixed(key) >> 32n) * size >> 32n);
      }
    }
    return hashes;
  }
}

// Finaliser of SplitMix64, modulo 2^64. It needs BigInt, because a JavaScript number only holds 53 bits.
function mixed(key) {
  let z = BigInt.asUintN(64, (key ^ key >> 30n) * 0xBF58476D1CE4E5B9n);
  z = BigInt.asUintN(64, (z ^ z >> 27n) * 0x94D049BB133111EBn);
  return z ^ z >> 31n;
}
