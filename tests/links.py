"""Make every badge, link and Colab cell follow `user`, `repo` and `branch` of settings.ini: `python tests/links.py`, or `make export`.

A Colab badge leads to this project, whatever it was called when the badge was written; other links to the same place go along."""
import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
BADGE = re.compile(r'colab\.research\.google\.com/github/([\w.-]+)/([\w.-]+)/blob/([\w.-]+)/nbs/')


def follow(text: str, old: tuple[str, str, str], new: tuple[str, str, str]) -> str:
    "A text whose links to one repository lead to another; `old` and `new` are user, repository and branch"
    user, repo, branch = map(re.escape, old)
    text = re.sub(rf'(/{user}/{repo}/(?:blob|raw|tree)/){branch}/', rf'\g<1>{new[2]}/', text)
    text = re.sub(rf'(\bgithub(?:\.com)?/){user}/{repo}\b', rf'\g<1>{new[0]}/{new[1]}', text)
    return re.sub(rf'\b{user}\.github\.io/{repo}\b', f'{new[0]}.github.io/{new[1]}', text)


def write(root: Path=ROOT) -> list[Path]: # the files that were changed
    config = configparser.ConfigParser(delimiters=['='])
    config.read(root/'settings.ini', encoding='utf-8')
    new = tuple(config['DEFAULT'][name] for name in ('user', 'repo', 'branch'))
    files = [*sorted(root.glob('nbs/**/*.ipynb')), root/'_quarto.yml', root/'CITATION.cff', root/'CHANGELOG.md', root/'CONTRIBUTING.md']
    texts = {path: path.read_text(encoding='utf-8') for path in files}
    places, changed = {place for text in texts.values() for place in BADGE.findall(text)}, []
    for path, text in texts.items():
        followed = text
        for old in places - {new}: followed = follow(followed, old, new)
        if followed == text: continue
        path.write_text(followed, encoding='utf-8')
        changed.append(path)
    return changed


if __name__ == '__main__':
    for path in write(): print(path.relative_to(ROOT))
