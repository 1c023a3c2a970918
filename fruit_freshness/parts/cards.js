// The card of an answer, and the camera: shared by the widget in a notebook (anywidget loads this file) and the page of fruit_serve.

export function make(tag, fields = {}, ...children) {
  const made = Object.assign(document.createElement(tag), fields)
  made.append(...children)
  return made
}

// A capital letter first, and a full stop last if there is to be one
const sentence = (text, end = '') => text && text[0].toUpperCase() + text.slice(1).replace(/\.$/, '') + end

// What a card says above its bars: headline, explanation, and its kind, which gives its colour
export function words(answer) {
  if (answer.error) return ["This didn't work", answer.error, 'error']
  const guess = `${answer.fruit}, ${answer.freshness.toLowerCase()}`
  if (answer.accepted) return [guess, '', answer.freshness]
  const [, headline, rest] = (answer.reason || 'not sure').match(/^([^:(]*)[:(]?(.*?)\)?$/s) // before a colon or a parenthesis
  const explanation = [rest.trim(), `if I had to guess: ${guess}`].filter(Boolean).map(text => sentence(text, '.')).join(' ')
  return [sentence(headline.trim()), explanation, 'unsure']
}

// A labelled bar as long as the confidence is high; screen readers hear what it measures
function bar(label, share, task) {
  const percent = Math.round(100 * Math.min(Math.max(share, 0), 1)), fill = make('div')
  fill.style.width = percent + '%'
  const track = make('div', {className: 'fruit-bar'}, fill)
  const meter = {role: 'meter', 'aria-label': `confidence in the ${task}`, 'aria-valuemin': 0, 'aria-valuemax': 100, 'aria-valuenow': percent}
  for (const [name, value] of Object.entries(meter)) track.setAttribute(name, value)
  return [make('div', {className: 'fruit-row'}, make('span', {textContent: label}), make('span', {textContent: percent + '%'})), track]
}

// Headline, explanation and bars
export function saying(answer) {
  const [headline, explanation] = words(answer), parts = [make('div', {className: 'fruit-headline', textContent: headline})]
  if (explanation) parts.push(make('p', {textContent: explanation}))
  if (answer.fruit != null) parts.push(...bar(answer.fruit, answer.fruit_confidence, 'fruit'), ...bar(answer.freshness, answer.freshness_confidence, 'freshness'))
  return parts
}

// What stands where no photo can be shown
export const blank = () => make('div', {className: 'fruit-blank', textContent: '?'})

// Fill a card: a photo, its name, and the elements that say what it shows. `src` may be empty
export function fillCard(card, kind, name, src, ...said) {
  const photo = src ? make('img', {src, alt: `the photo ${name}`}) : blank()
  const source = make('div', {className: 'fruit-source', title: name, textContent: name})
  card.className = `fruit-card fruit-${kind}`
  card.setAttribute('aria-label', name)
  card.replaceChildren(photo, make('div', {className: 'fruit-text'}, source, ...said))
  return card
}

// Where an answer comes from
export const heatFigure = (label, src) => make('figure', {className: 'fruit-heat'},
  make('img', {src, alt: `the photo, glowing where "${label}" was seen`}), make('figcaption', {textContent: label}))

// Why there is no picture, by the name of the browser's error (https://www.w3.org/TR/mediacapture-streams/#dom-mediadevices-getusermedia)
const TROUBLE = {
  NotAllowedError: "The browser may not use the camera. Allow it beside the page's address, then press the button again",
  NotFoundError: 'There is no camera. Connect one, then press the button again',
  NotReadableError: 'The camera is in use. Close the program that uses it, then press the button again',
  SecurityError: 'Browsers allow the camera only on pages that come by https or from this computer. Open the page in one of these ways'}
export const cameraTrouble = name => (TROUBLE[name] ?? `The camera did not work (${name}). Try another browser`) + ', or choose a photo.'

// Show in a video element what the camera sees; `lost` is called when it is unplugged
export async function openCamera(video, width, lost) {
  if (!navigator.mediaDevices) throw new DOMException('', 'SecurityError')
  video.srcObject = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment', width: {ideal: width}}, audio: false})
  for (const track of video.srcObject.getTracks()) track.onended = lost
  await video.play()
}

export function closeCamera(video) {
  for (const track of video.srcObject?.getTracks() ?? []) { track.onended = null; track.stop() }
  video.srcObject = null
}

// What a video shows now, as a JPEG; its shorter side has at most `side` pixels
export function snap(video, side = Infinity) {
  const scale = Math.min(1, side / Math.min(video.videoWidth, video.videoHeight))
  const canvas = make('canvas', {width: video.videoWidth * scale, height: video.videoHeight * scale})
  canvas.getContext('2d').drawImage(video, 0, 0, canvas.width, canvas.height)
  return new Promise(done => canvas.toBlob(done, 'image/jpeg', .9))
}

// In a notebook: a card that follows its model
function renderCard({model, el}) {
  const card = el.appendChild(make('article'))
  function draw() {
    const answer = model.get('answer'), heats = Object.entries(model.get('heats')).map(([label, src]) => heatFigure(label, src))
    fillCard(card, words(answer)[2], model.get('name'), model.get('photo'), ...saying(answer), ...heats)
  }
  model.on('change:heats', draw)
  draw()
  return () => model.off('change:heats', draw)
}

// In a notebook: a button that takes a photo, which goes to Python as a message, or what went wrong
function renderCamera({model, el}) {
  function button(icon) {
    const picture = make('i', {className: `fa fa-${icon} left`, ariaHidden: 'true'})
    const made = el.appendChild(make('button', {type: 'button', className: 'jupyter-widgets jupyter-button widget-button'}, picture, make('span')))
    made.style.width = 'auto'
    return made
  }
  const take = button('camera'), cancel = button('times')
  const video = make('video', {muted: true, playsInline: true, ariaLabel: 'what the camera sees'})
  const stage = el.appendChild(make('div', {className: 'fruit-camera'}, video))
  let gone = false
  cancel.lastChild.textContent = 'Cancel'
  function show() {
    const live = Boolean(video.srcObject)
    stage.style.display = cancel.style.display = live ? '' : 'none'
    take.lastChild.textContent = live ? 'Take it now' : 'Take a photo'
    take.disabled = model.get('disabled')
  }
  const off = () => { closeCamera(video); show() }
  const fail = name => { off(); model.send({trouble: cameraTrouble(name)}) }
  async function on() {
    take.disabled = true
    try { await openCamera(video, 1280, () => fail('NotFoundError')) } catch (error) { return fail(error.name) }
    gone ? closeCamera(video) : show()
  }
  async function shoot() {
    const photo = await snap(video)
    off()
    model.send({}, undefined, [await photo.arrayBuffer()])
  }
  take.onclick = () => video.srcObject ? shoot() : on()
  cancel.onclick = off
  model.on('change:disabled', show)
  show()
  return () => { gone = true; model.off('change:disabled', show); closeCamera(video) }
}

export default {render: view => view.model.get('answer') ? renderCard(view) : renderCamera(view)}
