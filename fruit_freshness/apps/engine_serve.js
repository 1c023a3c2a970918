// What answers the page of fruit_serve: the service that it comes from.
import {make, snap} from './cards.js'

export const takesAddresses = true
export const ready = null // nothing to wait for
const howTo = make('a', {href: 'docs', textContent: 'how to'})
export const notice = ['Programs ask the same service: ', howTo, '.']

let token = ''
export function useToken(text) { token = text }
const allowed = () => token ? {Authorization: 'Bearer ' + token} : {}

// One request; an answer with `error` where there is none
async function ask(path, source) {
  const headers = allowed()
  let body = new FormData()
  if (typeof source === 'string') {
    body = JSON.stringify({url: source})
    headers['Content-Type'] = 'application/json'
  } else body.append('files', source, source.name || 'pasted photo')
  for (let tries = 0; ; tries++) {
    let response
    try { response = await fetch(path, {method: 'POST', body, headers}) }
    catch { return {error: 'The service can\'t be reached. Check the connection and try again.'} }
    if (response.status === 503 && tries < 5) {
      const seconds = +response.headers.get('Retry-After') || 1
      await new Promise(done => setTimeout(done, 1000 * seconds))
      continue
    }
    const unclear = {detail: `The service answered with something else than an answer (${response.status}).`}
    const answer = await response.json().catch(() => unclear)
    return response.ok ? answer[0] : {error: answer.detail, locked: response.status === 401}
  }
}
export const predict = source => ask('predict', source)
export const explain = source => ask('explain', source)

// What the network knows; null: it may not be said, or nobody answers
export async function facts() {
  const response = await fetch('model', {headers: allowed()}).catch(() => null)
  return response?.ok ? response.json() : null
}

// Answer a camera's pictures until the returned function is called, or until `ended` is
export function watch(video, answered, ended) {
  const socket = new WebSocket(location.href.replace(/^http/, 'ws').replace(/[^/]*$/, 'live'))
  async function send() {
    if (socket.readyState !== WebSocket.OPEN) return
    const picture = !document.hidden && video.videoWidth && await snap(video, 320)
    if (!picture) return setTimeout(send, 200)
    if (socket.readyState === WebSocket.OPEN) socket.send(picture)
  }
  socket.onopen = () => { if (token) socket.send(token); send() }
  socket.onmessage = event => { answered(JSON.parse(event.data)); send() }
  const closed = 'The connection to the service was closed. Try again.'
  socket.onclose = event => ended(event.reason || closed, event.code === 1008)
  return () => { socket.onmessage = socket.onclose = null; socket.close() }
}
