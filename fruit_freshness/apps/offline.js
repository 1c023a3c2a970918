// Keeps the page and its network for visits without a connection.
// `fruit_export` puts VERSION and FILES before this, which change with the content.
const OURS = `fruit ${registration.scope} `, NAME = OURS + VERSION

const keep = async () => (await caches.open(NAME)).addAll(FILES)

const clear = async () => {
  const old = (await caches.keys()).filter(name => name.startsWith(OURS) && name !== NAME)
  for (const name of old) await caches.delete(name)
  await clients.claim()
}

async function answer(request) {
  const wanted = request.mode === 'navigate' ? './' : request
  const kept = await (await caches.open(NAME)).match(wanted, {ignoreVary: true})
  return kept ?? fetch(request)
}

addEventListener('install', event => event.waitUntil(keep()))
addEventListener('activate', event => event.waitUntil(clear()))
addEventListener('fetch', event => {
  if (event.request.method === 'GET') event.respondWith(answer(event.request))
})
