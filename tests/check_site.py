"""Walk a built site in headless Chromium and list what can't be read: `python tests/check_site.py`."""
import argparse
import functools
import shutil
import threading
from configparser import ConfigParser
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
WIDTHS = (1280, 390) # pixels: a laptop and a phone

LOOK = r'''wide => {
  const found = [], main = document.querySelector('main') || document.body
  const shown = e => e.getClientRects().length > 0
  const start = e => e.textContent.trim().replace(/\s+/g, ' ').slice(0, 50)
  const within = (e, name) => e.closest('.' + name)
  const kind = e => within(e, 'cell-output') ? 'output' : within(e, 'cell-code') ? 'code block' : 'signature'
  const over = e => e.scrollWidth - e.clientWidth
  const page = over(document.documentElement)
  if (page > 1) found.push(`the page is ${page} px too wide`)
  for (const pre of main.querySelectorAll('pre')) {
    if (!shown(pre)) continue
    const parts = [pre, ...pre.querySelectorAll('code')].filter(e => getComputedStyle(e).display != 'inline')
    const most = Math.max(...parts.map(over))
    if (most > 1) { found.push(`${kind(pre)} scrolls by ${most} px: ${start(pre)}`); continue }
    const columns = pre.textContent.split('\n').filter(line => /\S {2,}\S/.test(line)).length > 1
    if (!wide || kind(pre) != 'output' || !columns) continue // a sentence may wrap, a table may not
    const code = pre.querySelector('code') || pre
    code.style.setProperty('white-space', 'pre', 'important')
    const needed = Math.max(over(pre), over(code))
    code.style.removeProperty('white-space')
    if (needed > 1) found.push(`table of text wraps, ${needed} px too wide: ${start(pre)}`)
  }
  for (const table of main.querySelectorAll('table')) {
    if (!shown(table)) continue
    const beyond = Math.round(table.getBoundingClientRect().right - main.getBoundingClientRect().right)
    const most = Math.max(beyond, over(table), over(table.parentElement))
    if (most > 1) found.push(`table is ${most} px too wide: ${start(table)}`)
    const words = document.createTreeWalker(table, NodeFilter.SHOW_TEXT)
    while (words.nextNode()) for (const word of words.currentNode.data.matchAll(/[^\s\/\-–—]{2,}/g)) {
      const range = document.createRange()
      range.setStart(words.currentNode, word.index)
      range.setEnd(words.currentNode, word.index + word[0].length)
      const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)))
      if (lines.size > 1) found.push(`a word breaks in a table: ${word[0]}`)
    }
  }
  for (const image of main.querySelectorAll('img'))
    if (!(image.alt || '').trim()) found.push(`image without alt text: ${image.src.slice(-60)}`)
  return found
}'''


def find_browser() -> str | None:
    "A Chromium on the path; None leaves playwright to its own"
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)


@contextmanager
def browser():
    "A browser without a window"
    with sync_playwright() as playwright:
        flags = ['--no-sandbox', '--disable-dev-shm-usage']
        started = playwright.chromium.launch(executable_path=find_browser(), args=flags)
        yield started
        started.close()


@contextmanager
def served(folder: Path):
    "The address under which this computer alone reads the folder"
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}/'
    finally: server.shutdown(); server.server_close()


def published() -> str:
    "The address that the site will have: nbdev writes it into links between pages"
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']['doc_host'] + config['DEFAULT']['doc_baseurl'] + '/'


def broken_links(pages: dict, folder: Path) -> list[str]:
    "Links between the pages that lead to no file, or to no place on a page"
    found = []
    for name, (links, _) in pages.items():
        for link in links:
            local = link.replace(published(), '/', 1) if link.startswith(published()) else link
            if urlsplit(local).scheme: continue
            path, _, place = urljoin(f'/{name}', local).partition('#')
            path = unquote(path.partition('?')[0])[1:]
            if path == '' or path.endswith('/'): path += 'index.html'
            if not (folder/path).is_file(): found.append(f'{name}: link to nowhere: {link}')
            elif path in pages and unquote(place) not in pages[path][1]:
                found.append(f'{name}: no such place: {link}')
    return found


def check(folder: Path, widths=WIDTHS) -> list[str]:
    "What is wrong with each page of the site in `folder`, one line each"
    found, pages = [], {}
    with served(folder) as address, browser() as started:
        for width in widths:
            tab, asked = started.new_page(viewport=dict(width=width, height=900)), []
            tab.route(lambda url: not url.startswith(address), lambda route: route.abort()) # noted, not fetched
            tab.on('request', lambda request, asked=asked: asked.append((request.resource_type, request.url)))
            for path in sorted(folder.rglob('*.html')):
                name = path.relative_to(folder).as_posix()
                asked.clear()
                tab.goto(address + name, wait_until='load')
                found += [f'{name} at {width} px: {text}' for text in tab.evaluate(LOOK, width > 1000)]
                if name in pages: continue
                scripts = {url for kind, url in asked if kind == 'script' and not url.startswith(address)}
                found += [f'{name}: script from elsewhere: {url}' for url in sorted(scripts)]
                links = tab.eval_on_selector_all('a[href]', "all => all.map(link => link.getAttribute('href'))")
                places = tab.eval_on_selector_all('[id], a[name]', 'all => all.map(one => one.id || one.name)')
                pages[name] = links, {*places, '', 'top'}
            tab.close()
    return found + broken_links(pages, folder)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path, nargs='?', default=ROOT/'_docs', help='with the built site')
    options = parser.parse_args()
    if not (options.folder/'index.html').is_file():
        parser.error(f'{options.folder}: no index.html there; build the site with `make docs`')
    findings = check(options.folder)
    print('\n'.join(findings) or 'nothing to mend')
    raise SystemExit(bool(findings))
