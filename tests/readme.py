"""Write README.md from nbs/index.ipynb without Quarto: `python tests/readme.py`."""
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent


def shown(cell) -> str:
    "A notebook cell as the Markdown that a reader should see; nothing for a hidden one"
    if cell.cell_type == 'markdown': return cell.source
    directives = re.findall(r'^#\|\s*(.+)$', cell.source, re.MULTILINE)
    if any(directive.split(':')[0] in ('hide', 'include') for directive in directives): return ''
    source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.MULTILINE).strip()
    parts = [] if 'echo: false' in directives else [f'```python\n{source}\n```']
    for output in cell.outputs:
        data = output.get('data', {})
        text = data.get('text/markdown') or (f"```\n{printed.rstrip()}\n```" if (printed := output.get('text') or data.get('text/plain')) else '')
        parts.append(text)
    return '\n\n'.join(part for part in parts if part)


def readme() -> str:
    "README.md: the home page, with links that lead where they should from the root of the repository"
    notebook = nbformat.read(ROOT/'nbs'/'index.ipynb', as_version=4)
    text = '\n\n'.join(part for cell in notebook.cells if (part := shown(cell).strip()))
    text = re.sub(r'\]\((?!https?:|#|mailto:)([^)]+)\)', r'](nbs/\1)', text)
    return '<!-- Generated from nbs/index.ipynb by tests/readme.py; edit the notebook. -->\n\n' + text + '\n'


if __name__ == '__main__': (ROOT/'README.md').write_text(readme(), encoding='utf-8')
