"""`fetch_photo` against hosts that misbehave and addresses that lead inside: nothing hangs, nothing fills memory, nothing is sent where it should not be."""
import os
import re
import socket
import sys
import time
import tracemalloc
from unittest.mock import patch

import pytest
from hosts import HOSTILE, certificate_for, lookup, photo_host

from fruit_freshness.parts.fetch import FetchError, fetch_photo, find_commons


@pytest.fixture(scope='module')
def host():
    with photo_host() as host: yield host


def refusal(url, **kwargs) -> str:
    "The words with which an address is refused"
    with pytest.raises(FetchError) as caught: fetch_photo(url, **kwargs)
    return str(caught.value)


# -- what hosts answer -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('path', ['/apple.jpg', '/chunks.jpg', '/redirects/5'])
def test_good_hosts(host, path):
    "A photo arrives whole, in chunks and over redirects; the host is told who asks"
    assert fetch_photo(host.address + path, allow_private=True).size == (96, 96)
    agent = host.seen[-1]['User-Agent']
    assert agent.startswith('fruit_freshness/') and 'https://' in agent


def test_redirects_with_a_body(host):
    "The body of a redirect is not read: neither one that grows a thousandfold when decompressed, nor one without an end"
    tracemalloc.start()
    try:
        for path in ('/to-bomb', '/to-endless', '/to-bytes'):
            assert fetch_photo(host.address + path, allow_private=True).size == (96, 96)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000 # bytes, at the highest
    finally: tracemalloc.stop()


BAD = {'/status/404': 'does not exist', '/status/403': 'by programs', '/status/500': 'server error', '/page': 'web page',
       '/text': "can't be opened", '/empty': "can't be opened", '/big': 'larger than 20 MB', '/endless': 'larger than 20 MB',
       '/bomb': 'compressed although not requested', '/short': 'closed the connection', '/garbage': 'not HTTP',
       '/headers': 'not HTTP', '/redirects/6': 'redirected more than 5', '/to?file:///etc/passwd': 'begins with https://',
       '/to?https://me:secret@example.org/': 'before the @', '/to-bracket': 'not an address', '/digits': 'larger than 20 MB'}


@pytest.mark.parametrize('path', BAD)
def test_bad_hosts(host, path):
    "Each is refused in a sentence that names the address, and no password"
    words = refusal(host.address + path, allow_private=True)
    assert BAD[path] in words and host.address in words
    assert 'secret' not in words.split('leads to')[-1]


SLOW = {'/silent': 'within 0.5 seconds', '/dribble-headers': 'longer than 1 seconds',
        '/dribble-body': 'longer than 1 seconds', '/dribble-open': 'longer than 1 seconds'}


@pytest.mark.parametrize('path', SLOW)
def test_slow_hosts(host, path):
    "A host that says nothing, and three that say a letter at a time, are given up in time"
    start = time.monotonic()
    assert SLOW[path] in refusal(host.address + path, allow_private=True, timeout=.5, total=1)
    assert time.monotonic() - start < 10 # the host would go on for 30


def test_names_and_proxies(host):
    "A name nobody knows, a closed port, a name that leads inside; the proxies of the environment are not asked"
    proxies = dict(http_proxy='http://127.0.0.1:9', https_proxy='http://127.0.0.1:9')
    named = host.address.replace('127.0.0.1', 'photos.example')
    with patch('socket.getaddrinfo', lookup), patch.dict(os.environ, proxies):
        assert 'not known' in refusal('https://no-such-fruit.invalid/apple.jpg')
        assert 'connection refused' in refusal('http://photos.example:9/apple.jpg', allow_private=True)
        assert 'local or private address' in refusal(f'{named}/apple.jpg')
        assert fetch_photo(f'{named}/apple.jpg', allow_private=True).size == (96, 96)
    assert host.seen[-1]['Host'] == f'photos.example:{host.server_port}'


def test_certificates(tmp_path):
    "A certificate must be trusted, and made out to the name in the address, although the connection goes to a checked number"
    certificate = certificate_for('photos.example', tmp_path)
    if not certificate: pytest.skip('openssl is missing')
    with photo_host(certificate) as secure, patch('socket.getaddrinfo', lookup):
        address = f'https://{{}}:{secure.server_port}/apple.jpg'
        assert 'no valid certificate' in refusal(address.format('photos.example'), allow_private=True)
        with patch('requests.adapters.DEFAULT_CA_BUNDLE_PATH', str(certificate)): # now the system trusts it
            assert fetch_photo(address.format('photos.example'), allow_private=True).size == (96, 96)
            assert 'no valid certificate' in refusal(address.format('other.example'), allow_private=True)
    assert secure.names == ['photos.example', 'photos.example', 'other.example'] # asked for by name, never by number


def test_commons(host):
    "What is no answer of Wikimedia Commons is said to be none"
    found, = find_commons('apple', f'{host.address}/api.php', allow_private=True)
    assert (found.title, found.credit) == ('An apple.jpg', 'Jane Doe, CC BY-SA 4.0, Wikimedia Commons')
    for path in ('/text', '/list.json'):
        with pytest.raises(FetchError, match='something other than photos'):
            find_commons('apple', host.address + path, allow_private=True)
    with pytest.raises(FetchError, match='connection refused'): find_commons('apple', 'http://127.0.0.1:9/', allow_private=True)


# -- attacks -----------------------------------------------------------------------------------------------------------

CONNECTIONS = [] # every attempt of this process to connect, while `watched` is set
watched = False
sys.addaudithook(lambda event, args: CONNECTIONS.append(args[1]) if watched and event in ('socket.connect', 'socket.sendto') else None)


@pytest.fixture
def connections():
    "Attempts to connect during a test; Python itself reports them"
    global watched
    CONNECTIONS.clear()
    watched = True
    yield CONNECTIONS
    watched = False


def test_hostile_addresses(connections):
    "None is fetched, and nothing is sent anywhere"
    with patch('socket.getaddrinfo', lookup): words = [refusal(url) for url in HOSTILE]
    assert connections == [] and len(words) > 60
    assert not [line for line in words if 'root:' in line]


def test_rebinding(connections):
    "A name that changes its address after the check: the address that was checked is the one that is connected to"
    answers = iter([['8.8.8.8'], ['127.0.0.1'], ['127.0.0.1']])
    def rebinding(host, port, *args, **kwargs):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, '', (ip, port)) for ip in next(answers)]
    def unreachable(self, address):
        connections.append(address)
        raise ConnectionRefusedError
    with patch('socket.getaddrinfo', rebinding), patch('socket.socket.connect', unreachable):
        assert 'connection refused' in refusal('http://rebinding.example/apple.jpg')
    assert connections == [('8.8.8.8', 80)]
    assert list(answers) == [['127.0.0.1'], ['127.0.0.1']] # the name service was asked once


def test_redirects_inside(host, connections):
    "A public host that redirects inside: for this test, connections to 8.8.8.8 go to our host"
    real_connect, reached = socket.socket.connect, []
    def bent(self, address):
        reached.append(address[0])
        return real_connect(self, ('127.0.0.1', host.server_port) if address[0] == '8.8.8.8' else address)
    inward = ['http://127.0.0.1/', f'{host.address}/apple.jpg', 'http://[::1]/', 'http://169.254.169.254/',
              'http://localhost/', '//10.0.0.1/', 'http://2130706433/', 'gopher://8.8.8.8/']
    with patch('socket.getaddrinfo', lookup), patch('socket.socket.connect', bent):
        assert fetch_photo('http://8.8.8.8/apple.jpg').size == (96, 96)
        assert host.seen[-1]['Host'] == '8.8.8.8'
        for target in inward: assert re.search('leads to|redirected to', refusal(f'http://8.8.8.8/to?{target}'))
    assert set(reached) == {'8.8.8.8'} and len(reached) == 1 + len(inward)
    assert set(connections) == {('127.0.0.1', host.server_port)}
