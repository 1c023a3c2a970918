"""What is built of the project works where the project is not."""
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest
from conftest import ROOT, run


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "An sdist made of this checkout, and a wheel made of the sdist"
    folder = tmp_path_factory.mktemp('dist')
    done = run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder, ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(folder.glob('*.tar.gz')), next(folder.glob('*.whl'))


def test_what_is_inside(built):
    sdist, wheel = built
    names = tarfile.open(sdist).getnames()
    for needed in ('settings.ini', 'CHANGELOG.md', 'nbs/00_data.ipynb', 'nbs/parts/core.ipynb', 'tests/test_house.py'):
        assert any(name.endswith(f'/{needed}') for name in names), needed
    package = [path for path in (ROOT/'fruit_freshness').rglob('*') if path.is_file() and '__pycache__' not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in package} <= set(zipfile.ZipFile(wheel).namelist())
    assert wheel.stat().st_size < 12_000_000


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
        for name in ('git', 'make', 'chromium'): fake(name, '#!/bin/sh\n')
    done = subprocess.run([shutil.which('bash'), ROOT/'.ci'/'run'], env=dict(PATH=str(bin)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines() if log.exists() else []
    if has_all: assert lines == []
    else:
        update, install = lines
        assert update.startswith('update') and {'git', 'make', 'chromium', 'python3-venv'} <= set(install.split())
