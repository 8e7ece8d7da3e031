// Run each ONNX model on its symbols, and return its outputs.
const [binary, models, texts, done] = arguments;
const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
(async () => {
  Object.assign(ort.env.wasm, {numThreads: 1, wasmBinary: bytes(binary).buffer});
  const found = [];
  for (const [number, model] of models.entries()) {
    const session = await ort.InferenceSession.create(bytes(model), {executionProviders: ["wasm"]});
    const codes = new ort.Tensor("int32", Int32Array.from(texts[number]), [1, texts[number].length]);
    const answer = await session.run({codes});
    found.push(session.outputNames.map((name) => [...answer[name].data]));
  }
  done(found);
})();
