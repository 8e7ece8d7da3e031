// Encoder of text for a crepe_dist model: the methods encode, inputs and buckets of crepe_runtime.py's Classifier.
//
//     const encoder = new Encoder(about);             // about: the model's metadata, parsed
//     const codes = encoder.encode("a text");         // Uint8Array [feature_len]
//     encoder.read(codes);                            // number of known characters, without spaces
//     encoder.inputs(codes);                          // {name: [type, data, shape]} for a batch of one
//
// A character is a code point, as in Python. A JavaScript string has one or two UTF-16 code units for each.

const BLANK = 255;  // code of unknown characters and of padding

export class Encoder {
  constructor(about) {
    this.about = about;
    this.table = new Map();  // character → code, independent of the browser's Unicode version
    about.characters.forEach((characters, code) => {
      for (const character of characters) this.table.set(character, code);
    });
  }

  // Mode notebook reads the first characters, the other modes read the last ones in reverse.
  encode(text) {
    const length = this.about.feature_len, inOrder = this.about.mode === "notebook";
    // 2 * length code units always contain `length` whole characters, even if the slice halves one.
    const characters = [...(inOrder ? text.slice(0, 2 * length) : text.slice(-2 * length))];
    const kept = inOrder ? characters.slice(0, length) : characters.slice(-length).reverse();
    const codes = new Uint8Array(length).fill(BLANK);
    kept.forEach((character, place) => { codes[place] = this.table.get(character) ?? BLANK; });
    return codes;
  }

  read(codes) {
    const space = this.table.get(" ");
    return codes.reduce((count, code) => count + (code !== BLANK && code !== space), 0);
  }

  inputs(codes) {
    if (this.about.kind !== "ngrams") return {codes: ["uint8", codes, [1, codes.length]]};
    const found = this.buckets(codes), shape = [1, Math.max(1, found.length)];
    const buckets = new Int32Array(shape[1]), own = new Float32Array(shape[1]).fill(1, 0, found.length);
    buckets.set(found);
    return {buckets: ["int32", buckets, shape], own: ["float32", own, shape]};
  }

  // Distinct buckets of the n-grams of known characters, ascending.
  buckets(codes) {
    const {longest, buckets} = this.about, size = BigInt(buckets), found = new Set();
    for (let start = 0; start < codes.length; start++) {
      let key = 0n;
      for (let end = start; end < start + longest && end < codes.length && codes[end] !== BLANK; end++) {
        key = key * 257n + BigInt(codes[end] + 1);
        found.add(Number((mixed(key) >> 32n) * size >> 32n));
      }
    }
    return Int32Array.from(found).sort();
  }
}

// Finaliser of SplitMix64, modulo 2^64. It needs BigInt, because a JavaScript number only holds 53 bits.
function mixed(key) {
  let z = BigInt.asUintN(64, (key ^ key >> 30n) * 0xBF58476D1CE4E5B9n);
  z = BigInt.asUintN(64, (z ^ z >> 27n) * 0x94D049BB133111EBn);
  return z ^ z >> 31n;
}
