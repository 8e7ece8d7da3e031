// Encoder of text for a crepe_dist model: the methods encode, inputs and hashed of crepe_runtime.py's Classifier.
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
    this.table = new Map();  // character → code or two, independent of the browser's Unicode version
    about.characters.forEach((characters, code) => {
      for (const character of characters) this.table.set(character, [code]);
    });
    const pairs = Object.entries(about.pairs ?? {});
    for (const [character, codes] of pairs) this.table.set(character, codes);
    this.uncounted = new Set([BLANK, ...this.table.get(" "), ...pairs.map(([, [, second]]) => second)]);
  }

  // Mode notebook reads the first characters, the other modes read the last ones in reverse.
  encode(text) {
    const length = this.about.feature_len, inOrder = this.about.mode === "notebook";
    // 2 * length code units always contain `length` whole characters, even if the slice halves one.
    const characters = [...(inOrder ? text.slice(0, 2 * length) : text.slice(-2 * length))];
    const all = characters.flatMap((character) => this.table.get(character) ?? [BLANK]);
    const codes = new Uint8Array(length).fill(BLANK);
    codes.set(inOrder ? all.slice(0, length) : all.slice(-length).reverse());
    return codes;
  }

  read(codes) {
    return codes.reduce((count, code) => count + !this.uncounted.has(code), 0);
  }

  inputs(codes) {
    const {kind, longest, buckets, edges = true, reach, rows, stride = 1} = this.about;
    if (kind === "paper") return {codes: ["uint8", codes, [1, codes.length]]};
    const end = 1 + codes.findLastIndex((code) => code !== BLANK), positions = Math.ceil((end + 2) / stride);
    let text = codes.subarray(0, Math.max(1, end));
    if (edges) {  // symbols before the first and after the last known character
      text = new Uint8Array(positions * stride).fill(BLANK);
      text.set(codes.subarray(0, end), 1);
      if (end) text[0] = text[end + 1] = this.about.characters.length;
    }
    const found = new Set(this.hashed(text, longest, buckets));
    found.delete(buckets);
    const shape = [1, Math.max(1, found.size)];
    const padded = new Int32Array(shape[1]), own = new Float32Array(shape[1]).fill(1, 0, found.size);
    padded.set([...found]);
    const inputs = {buckets: ["int32", padded, shape], own: ["float32", own, shape]};
    if (kind === "crepe") inputs.places = ["int32", this.hashed(text, reach, rows), [1, positions, stride * reach]];
    return inputs;
  }

  // Rows of the n-grams of 1 to `longest` known characters at each position; `rows` where there is none.
  hashed(codes, longest, rows) {
    const found = new Int32Array(codes.length * longest).fill(rows), size = BigInt(rows);
    for (let start = 0; start < codes.length; start++) {
      let key = 0n;
      for (let n = 0; n < longest && start + n < codes.length && codes[start + n] !== BLANK; n++) {
        key = key * 257n + BigInt(codes[start + n] + 1);
        found[start * longest + n] = Number((mixed(key) >> 32n) * size >> 32n);
      }
    }
    return found;
  }
}

// Finaliser of SplitMix64, modulo 2^64. It needs BigInt, because a JavaScript number only holds 53 bits.
function mixed(key) {
  let z = BigInt.asUintN(64, (key ^ key >> 30n) * 0xBF58476D1CE4E5B9n);
  z = BigInt.asUintN(64, (z ^ z >> 27n) * 0x94D049BB133111EBn);
  return z ^ z >> 31n;
}
