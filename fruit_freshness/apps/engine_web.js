// What answers the page of `fruit_export --format web`: the network in this browser, in WebAssembly.
// Photos stay on the device.
import * as ort from './ort.js'
import {make} from './cards.js'

export const takesAddresses = false // this page fetches nothing from other sites
export const explain = null
export const notice = ['Photos stay in this browser: nothing is uploaded. After one visit it works offline.']

const beside = name => new URL(name, import.meta.url).href
ort.env.wasm.wasmPaths = {mjs: beside('ort_wasm.js'), wasm: beside('ort.wasm')}
ort.env.wasm.proxy = true // in a worker, so that the page stays responsive
ort.env.logLevel = 'error'

// The service worker keeps every file for the next visit; where there is none, the page needs a connection
async function keepOffline() {
  try {
    const registration = await navigator.serviceWorker.register('offline.js')
    const worker = registration.active ? null : registration.installing
    if (worker) await new Promise(done => {
      worker.onstatechange = () => { if (['activated', 'redundant'].includes(worker.state)) done() }
    })
  } catch {}
}
document.head.append(make('link', {rel: 'manifest', href: 'manifest.json'}))
const kept = keepOffline() // it fetches the large files; whoever waits for it doesn't fetch them twice

let told = null, opened = null
const tell = async () => { await kept; return (await fetch('model.json')).json() }
export const facts = () => told ??= tell().catch(() => told = null)

// The network; a failure is tried again with the next photo
async function start() {
  await kept
  return ort.InferenceSession.create(beside('fruit.onnx'), {executionProviders: ['wasm']})
}
const session = () => opened ??= start().catch(error => { opened = null; throw error })
export const ready = session().catch(() => {})

const MOST_PIXELS = 16e6 // as many as a canvas of Safari on a phone holds

// A photo as RGB bytes: upright, in sRGB, transparency on white
async function pixels(source, size) {
  let bitmap = await createImageBitmap(source, {imageOrientation: 'from-image'})
  const shrink = Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height))
  if (shrink < 1) {
    const [resizeWidth, resizeHeight] = [bitmap.width, bitmap.height].map(side => Math.floor(side * shrink))
    bitmap = await createImageBitmap(bitmap, {resizeWidth, resizeHeight, resizeQuality: 'high'})
  }
  const {width, height} = bitmap, canvas = make('canvas', {width, height})
  const context = canvas.getContext('2d', {willReadFrequently: true})
  context.fillStyle = '#fff'
  context.fillRect(0, 0, width, height)
  context.drawImage(bitmap, 0, 0)
  bitmap.close()
  const {data} = context.getImageData(0, 0, width, height)
  canvas.width = canvas.height = 0 // gives its memory back
  return averaged(data, width, height, blocks(width, size), blocks(height, size))
}

// How many pixels become one before the graph resizes: pillow's `reducing_gap=2`, as `Predictor` has it
const blocks = (length, size) => Math.max(1, Math.floor(length / size / 2))

// RGB of the averages of blocks of RGBA; what is left at the edges is averaged among itself
function averaged(rgba, width, height, wide, high) {
  const columns = Math.ceil(width / wide), rows = Math.ceil(height / high)
  const rgb = new Uint8Array(columns * rows * 3), sums = new Uint32Array(columns * 3)
  for (let row = 0, to = 0; row < rows; row++) {
    const top = row * high, bottom = Math.min(top + high, height)
    sums.fill(0)
    for (let y = top, from = top * width * 4; y < bottom; y++)
      for (let column = 0, left = width; column < columns; column++, left -= wide)
        for (let x = Math.min(wide, left); x > 0; x--, from += 4)
          for (let c = 0; c < 3; c++) sums[column * 3 + c] += rgba[from + c]
    for (let column = 0, left = width; column < columns; column++, left -= wide) {
      const count = (bottom - top) * Math.min(wide, left)
      for (let c = 0; c < 3; c++) rgb[to++] = Math.floor(sums[column * 3 + c] / count + .5)
    }
  }
  return {rgb, shape: [rows, columns, 3]}
}

const round = number => Math.round(number * 1e4) / 1e4
const ranked = shares => [...shares.keys()].sort((a, b) => shares[b] - shares[a])

// Why the network abstains, null: it does not; the rule and the words of `reason_to_abstain`
function reasonToAbstain({reasons, fruits, confidence_threshold: threshold}, fruit, freshness, novelty) {
  if (novelty > 1) return reasons.novelty
  const [first, second] = ranked(fruit), sure = Math.max(...freshness), half = Math.sqrt(threshold)
  if (fruit[first] * sure >= threshold) return null
  const doubts = [fruit[first] <= half && 'fruit', sure <= half && 'freshness'].filter(Boolean)
  return reasons[doubts.join(' and ')].replace('{0}', fruits[first]).replace('{1}', fruits[second])
}

async function answer(facts, {rgb, shape}) {
  const scores = await (await session()).run({photo: new ort.Tensor('uint8', rgb, shape)})
  const [fruit, freshness, distance] = ['fruit', 'freshness', 'novelty'].map(name => scores[name].data)
  const novelty = facts.novelty_threshold ? distance[0] / facts.novelty_threshold : 0
  const [kind, state] = [ranked(fruit)[0], ranked(freshness)[0]]
  const reason = reasonToAbstain(facts, fruit, freshness, novelty)
  return {
    fruit: facts.fruits[kind], freshness: facts.freshness[state],
    fruit_confidence: round(fruit[kind]), freshness_confidence: round(freshness[state]),
    novelty: round(novelty), accepted: reason === null, reason, error: null}
}

// An answer to a file or to what a video shows; one with `error` where there is none
export async function predict(source, name) {
  const about = await facts()
  let image
  try { if (!about) throw about; await session() }
  catch { return {error: 'The network could not be loaded. Check the connection and try again.'} }
  try { image = await pixels(source, about.size) }
  catch { return {error: `${name}: damaged, or not a photo that this browser can show; convert it to JPEG`} }
  try { return await answer(about, image) }
  catch { return {error: `${name}: too little memory to look at it; close other pages and try again`} }
}

// A camera's answers over time: smoothed, and slow to change their label; the rule of `TemporalSmoother`
function smoother(halfLife = .25, lead = .2) {
  const scores = {fruit: {}, freshness: {}, accepted: {}}, said = {}
  let before = null
  function vote(task, label, confidence, weight) {
    const votes = scores[task]
    votes[label] ??= 0
    for (const known in votes) {
      const seen = known === label ? confidence : 0
      votes[known] = (1 - weight) * votes[known] + weight * seen
    }
    const best = Object.keys(votes).reduce((a, b) => votes[b] > votes[a] ? b : a)
    if (!(task in said) || votes[best] > votes[said[task]] + lead) said[task] = best
    return [said[task], votes[said[task]]]
  }
  return (now, seconds) => {
    const weight = before === null ? 1 : 1 - .5 ** ((seconds - before) / halfLife)
    before = seconds
    const steady = {...now}
    for (const task of ['fruit', 'freshness'])
      [steady[task], steady[`${task}_confidence`]] = vote(task, now[task], now[`${task}_confidence`], weight)
    steady.accepted = vote('accepted', String(now.accepted), 1, weight)[0] === 'true'
    steady.reason = steady.accepted ? null : now.reason ?? 'not sure: the picture changes'
    return steady
  }
}

// Answer what a video shows until the returned function is called
export function watch(video, answered) {
  const steady = smoother()
  let live = true
  async function next() {
    if (!live) return
    if (document.hidden || !video.videoWidth) return setTimeout(next, 200)
    const answer = await predict(video, 'the camera')
    if (live) answered(answer.error ? answer : steady(answer, performance.now() / 1000))
    setTimeout(next)
  }
  next()
  return () => { live = false }
}
