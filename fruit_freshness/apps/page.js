// The page of fruit_serve and of `fruit_export --format web`.
// What answers is behind engine.js: a service, or the network in this browser.
import * as engine from './engine.js'
import {blank, fillCard, heatFigure, make, saying, words} from './cards.js'
import {cameraTrouble, closeCamera, openCamera} from './cards.js'

const $ = id => document.getElementById(id)
const say = text => { $('status').textContent = text }
const answers = [] // all of them, in the order of the photos
let waiting = 0

const shown = url => url.replace(/\/\/[^/?#]*@/, '//...@') // an address without its password

function askForToken() { $('key').hidden = false; $('token').focus() }

async function look(source, name) {
  const src = typeof source === 'string' ? '' : URL.createObjectURL(source)
  const item = make('li'), card = item.appendChild(make('article'))
  fillCard(card, 'wait', name, src, make('p', {textContent: 'Looking at it ...'}))
  const photo = card.firstChild, place = answers.push({source: name}) - 1
  let isShown = Boolean(src)
  photo.onload = () => URL.revokeObjectURL(src) // what is shown needs its address no more
  photo.onerror = () => { URL.revokeObjectURL(src); isShown = false; photo.replaceWith(blank()) }
  $('cards').prepend(item)
  waiting++; say(`Looking at ${waiting === 1 ? name : waiting + ' photos'} ...`)
  const answer = answers[place] = {...await engine.predict(source, name), source: name}
  const [headline, , kind] = words(answer), more = answer.error ? [] : [novelty(answer), ...explainer(source)]
  if (answer.locked) askForToken()
  fillCard(card, kind, name, '', ...saying(answer), ...more)
  if (isShown) card.firstChild.replaceWith(photo)
  $('save').hidden = false
  waiting--; say(waiting ? `Looking at ${waiting} photos ...` : `${name}: ${headline}`)
}

const novelty = answer => make('div', {
  className: 'fruit-source novelty',
  title: 'Above 1 a photo is unlike the training photos, and the answer is a guess',
  textContent: `novelty ${answer.novelty.toFixed(2)} (limit 1)`})

// The button below an answer, and what it shows
function explainer(source) {
  if (!engine.explain) return []
  const button = make('button', {className: 'more', type: 'button', textContent: 'Where did it look?'})
  const heat = make('div', {hidden: true})
  button.setAttribute('aria-expanded', 'false')
  button.onclick = async () => {
    if (!heat.childElementCount) {
      button.disabled = true
      const answer = await engine.explain(source)
      button.disabled = false
      if (answer.error) heat.append(make('p', {textContent: answer.error}))
      else for (const task of ['fruit', 'freshness'])
        heat.append(heatFigure(answer[task], answer[`${task}_heat`]))
    }
    heat.hidden = !heat.hidden
    button.setAttribute('aria-expanded', String(!heat.hidden))
  }
  return [button, heat]
}

// Photos are asked about three at a time, in order
async function lookAll(files) {
  const queue = [...files]
  async function ask() {
    for (let file; file = queue.shift();) await look(file, file.name || 'pasted photo')
  }
  await Promise.all([ask(), ask(), ask()])
}

function lookAt(url) { if (engine.takesAddresses && /^https?:\S+$/.test(url)) look(url, shown(url)) }

const chosen = event => { lookAll(event.target.files); event.target.value = '' }
for (const id of ['files', 'shoot']) $(id).onchange = chosen
$('address').hidden = !engine.takesAddresses
$('address').onsubmit = event => {
  event.preventDefault()
  const url = $('url').value.trim()
  if (url) { look(url, shown(url)); $('url').value = '' } else say('Paste the address of a photo first.')
}
$('key').onsubmit = event => {
  event.preventDefault()
  engine.useToken($('token').value)
  $('key').hidden = true
  say('Now try again.')
  greet()
}
document.ondragover = event => { event.preventDefault(); $('drop').classList.add('over') }
document.ondragleave = event => { if (!event.relatedTarget) $('drop').classList.remove('over') }
document.ondrop = event => {
  event.preventDefault(); $('drop').classList.remove('over')
  if (event.dataTransfer.files.length) lookAll(event.dataTransfer.files)
  else lookAt(event.dataTransfer.getData('text/uri-list').split('\n')[0].trim())
}
document.onpaste = event => {
  if (event.clipboardData.files.length) { event.preventDefault(); lookAll(event.clipboardData.files) }
  else if (event.target.tagName !== 'INPUT') lookAt(event.clipboardData.getData('text').trim())
}

// All answers as a table, written as `fruit_predict` does
const COLUMNS = ['source', 'fruit', 'freshness', 'fruit_confidence', 'freshness_confidence',
  'novelty', 'accepted', 'reason', 'error']
function cell(value) {
  if (typeof value === 'boolean') return value ? 'True' : 'False'
  const text = String(value ?? '')
  const isFormula = typeof value === 'string' && /^[=+\-@\t\r]/.test(text) // a spreadsheet would compute it
  const safe = isFormula ? `'${text}` : text
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe
}
$('save').onclick = () => {
  const rows = answers.map(answer => ({accepted: false, ...answer}))
  const lines = rows.map(row => COLUMNS.map(name => cell(row[name])).join(','))
  const text = [COLUMNS.join(','), ...lines, ''].join('\n')
  const href = 'data:text/csv;charset=utf-8,' + encodeURIComponent(text)
  make('a', {download: 'answers.csv', href}).click()
}

// Live camera: one picture is looked at at a time, so a slow network means fewer answers and never late ones
const live = {end: null, times: [], said: ''}
$('camera').onclick = () => $('video').srcObject ? stop('') : start()
async function start() {
  say('Asking for the camera ...')
  try { await openCamera($('video'), 640, () => stop('The camera was unplugged.')) }
  catch (error) { return stop(cameraTrouble(error.name)) }
  $('stage').hidden = false
  $('camera').textContent = 'Stop the camera'; $('camera').setAttribute('aria-pressed', 'true')
  say('The camera is live.')
  live.end = engine.watch($('video'), draw, (reason, locked) => { if (locked) askForToken(); stop(reason) })
}
function draw(answer) {
  const [headline, , kind] = words(answer), now = performance.now()
  live.times = [...live.times.filter(time => now - time < 2000), now]
  const seconds = (now - live.times[0]) / 1000
  $('rate').textContent = seconds > 0 ? `${((live.times.length - 1) / seconds).toFixed(1)} fps` : ''
  $('answer').className = 'fruit-' + kind
  $('answer').replaceChildren(...saying(answer))
  if (live.said !== headline) say(live.said = headline) // what screen readers hear: changes only
}
function stop(reason) {
  live.end?.()
  Object.assign(live, {end: null, times: [], said: ''})
  closeCamera($('video'))
  $('stage').hidden = true; $('answer').replaceChildren(); $('rate').textContent = ''
  $('camera').textContent = 'Live camera'; $('camera').setAttribute('aria-pressed', 'false')
  say(reason)
}

async function greet() {
  const facts = await engine.facts()
  if (!facts) return
  const fruits = facts.fruits.map(fruit => fruit.toLowerCase())
  const most = fruits.length > 1 ? fruits.slice(0, -1).join(', ') + ' and ' : ''
  $('knows').textContent = `It knows ${most}${fruits.at(-1)}. If it can't tell, it says so.`
}
async function prepare() {
  say('Loading the network ...')
  await engine.ready
  if (!waiting && $('status').textContent.startsWith('Loading')) say('')
}
$('notice').append(...engine.notice)
greet()
if (engine.ready) prepare()
