"""`fruit_webcam` as a running program that somebody ends."""
import json
import re
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

from fruit_freshness.parts.sample import draw_photo

# what a test runs in the background may have been told to ignore Ctrl-C
WEBCAM = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from fruit_freshness.apps.webcam import fruit_webcam; raise SystemExit(fruit_webcam.main())'


@pytest.mark.parametrize('ending', ['avi', 'mp4'])
def test_stop(tmp_path, ending):
    "Ctrl-C in mid-run: a sentence, exit status 0, and a recording with every frame that was finished"
    writer = cv2.VideoWriter(str(tmp_path/'film.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 10, (96, 96))
    frame = np.array(draw_photo('Apple', 'Fresh', 1, 96).image)[..., ::-1]
    for _ in range(2000): writer.write(frame)
    writer.release()
    out, log = tmp_path/f'answers.{ending}', tmp_path/'log'
    with open(log, 'w') as errors, subprocess.Popen([sys.executable, '-c', WEBCAM, '--source', tmp_path/'film.avi', '--out', out], stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        lines = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGINT)
        lines += process.stdout.readlines()
    assert process.returncode == 0, log.read_text()
    said = re.fullmatch(r'fruit_webcam: stopped after (\d+) frames\n', log.read_text())
    assert said, log.read_text()
    frames, numbers = int(said[1]), [json.loads(line)['frame'] for line in lines]
    assert numbers == list(range(frames)) and 5 <= frames < 2000
    video = cv2.VideoCapture(str(out))
    recorded = 0
    while video.read()[0]: recorded += 1
    video.release()
    assert recorded == frames
