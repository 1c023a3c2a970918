"""What the tests share: the root of the repository and a way to run its commands."""
import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

_parser = configparser.ConfigParser(delimiters=['='])
_parser.read(ROOT/'settings.ini', encoding='utf-8')
SETTINGS = _parser['DEFAULT']


def run(*command, cwd=ROOT, timeout=900, **options) -> subprocess.CompletedProcess:
    "Run a command of this environment and return what it printed"
    environment = {**os.environ, 'PATH': f"{BIN}{os.pathsep}{os.environ['PATH']}", **options.pop('env', {})}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=environment, text=True, capture_output=True, timeout=timeout, **options)


@pytest.fixture(scope='session')
def small_weights(tmp_path_factory) -> Path:
    "Random weights of a very small backbone, as a file"
    import torch
    from fruit_freshness.model import create_backbone
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights')/'small.pth'
    torch.save(create_backbone(SMALL)[0].state_dict(), path)
    return path


SMALL = 'timm/test_efficientnet.r160_in1k'
