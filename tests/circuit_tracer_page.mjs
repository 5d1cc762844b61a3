// Opens a bundle of features with the code of circuit-tracer's own page, and shows what it found. By hand:
//
//     pip download circuit-tracer --no-deps && unzip -q circuit_tracer-*.whl -d page
//     circuitscope features export atlas --format circuit-tracer --out bundle
//     node tests/circuit_tracer_page.mjs page/circuit_tracer/frontend/assets bundle
//
// `util.js` and `init-feature-examples.js` run as they are. What a browser and the Hub give them is played here: a window,
// `fetch` with ranges of bytes (both ends included) from the folder, and pako's `inflate` by Node's zlib. What the page
// reads is compared, feature by feature, with a plain reading of the files.

import assert from 'node:assert'
import fs from 'node:fs'
import path from 'node:path'
import vm from 'node:vm'
import zlib from 'node:zlib'

const [assets, bundle] = process.argv.slice(2)
const base = 'https://huggingface.co/org/name/resolve/main/features/'

async function fetch(url, options = {}) {
  if (!url.startsWith(base)) throw new Error(`the page asks for ${url}`)
  const file = path.join(bundle, url.slice(base.length))
  if (!fs.existsSync(file)) return {ok: false, status: 404}
  let bytes = fs.readFileSync(file)
  const range = options.headers?.Range?.match(/^bytes=(\d+)-(\d+)$/)
  if (range) bytes = bytes.subarray(+range[1], +range[2] + 1)
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)
  return {ok: true, status: range ? 206 : 200, arrayBuffer: async () => buffer, text: async () => bytes.toString(), json: async () => JSON.parse(bytes)}
}

// Calls of d3 return what can be called on.
const any = new Proxy(function () {}, {get: (_, key) => (key === Symbol.toPrimitive ? () => '' : any), apply: () => any})
const window = {location: {hostname: 'elsewhere'}, initFeatureExamplesLogits() {}, initFeatureExamplesList() {}}
const pako = {inflate: bytes => zlib.unzipSync(Buffer.from(bytes)).toString()}
const context = vm.createContext({window, fetch, pako, d3: any, console, Uint8Array, URLSearchParams, document: any, navigator: {}, localStorage: any, history: any, location: window.location})
for (const name of ['util.js', 'feature_examples/init-feature-examples.js']) {
  vm.runInContext(fs.readFileSync(path.join(assets, name), 'utf8'), context, {filename: name})
  window.util ??= context.util
  context.util ??= window.util
}
const page = window.initFeatureExamples({containerSel: any})

const index = JSON.parse(zlib.gunzipSync(fs.readFileSync(path.join(bundle, 'index.json.gz'))))
let n = 0, nDead = 0, nExamples = 0
for (const layer of Object.keys(index).filter(key => /^\d+$/.test(key)).map(Number)) {
  const {filename, offsets} = index[layer]
  const bin = fs.readFileSync(path.join(bundle, filename))
  assert.equal(offsets.at(-1), bin.length)
  for (let feature = 0; feature + 1 < offsets.length; feature += 37) {
    const cantor = (layer + feature) * (layer + feature + 1) / 2 + feature
    const read = await page.loadFeature('org/name', cantor)
    const chunk = bin.subarray(offsets[feature], offsets[feature + 1])
    assert.equal(chunk.readUInt32LE(0), chunk.length - 4)
    const plain = JSON.parse(zlib.gunzipSync(chunk.subarray(4)))
    const {colorScale, featureIndex, scan, ...shown} = read
    assert.deepEqual(JSON.parse(JSON.stringify(shown)), plain)
    assert.equal(read.index, feature)
    const examples = read.examples_quantiles.flatMap(quantile => quantile.examples)
    for (const example of examples) {
      assert.equal(example.tokens.length, example.tokens_acts_list.length)
      assert(example.tokens_acts_list[example.train_token_ind] > 0)
    }
    n += 1
    nDead += examples.length === 0
    nExamples += examples.length
  }
}
console.log(`circuit-tracer's page reads ${n} features (${nDead} of them never active) with ${nExamples} examples`)
