// Text → what a model of crepe_dist takes: encode, inputs and buckets of crepe_runtime.py's Classifier, under the same
// names and with the same numbers.
//
//     const encoder = new Encoder(about);             // about: the model's metadata, parsed
//     const codes = encoder.encode("a text");         // Uint8Array [feature_len]
//     encoder.read(codes);                            // characters, spaces apart, that the network knows
//     encoder.inputs(codes);                          // {name: [type, data, shape]}, for a batch of one
//
// A character is a code point, as in Python; a string here has one or two units for each.

const BLANK = 255;  // the code of an unknown character, and of what is behind the end of a short text

export class Encoder {
  constructor(about) {
    this.about = about;
    this.table = new Map();  // character → code: neither lower case nor accents are this browser's Unicode's to decide
    about.characters.forEach((characters, code) => {
      for (const character of characters) this.table.set(character, code);
    });
  }

  // Mode notebook reads the first characters, others the last ones, backwards.
  encode(text) {
    const length = this.about.feature_len, inOrder = this.about.mode === "notebook";
    // So many units hold as many characters as are read, whole ones, even if one at the cut is halved.
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

  // In which buckets the n-grams of known characters are, each once, rising.
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

// As SplitMix64 does it, modulo 2^64. Numbers of JavaScript hold 53 bits, hence BigInt.
function mixed(key) {
  let z = BigInt.asUintN(64, (key ^ key >> 30n) * 0xBF58476D1CE4E5B9n);
  z = BigInt.asUintN(64, (z ^ z >> 27n) * 0x94D049BB133111EBn);
  return z ^ z >> 31n;
}
