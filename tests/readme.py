"""Write README.md and nbs/llms.txt from the notebooks, without Quarto: `python tests/readme.py`."""
import re
from configparser import ConfigParser
from pathlib import Path

import nbformat
import yaml

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


def title(path: Path) -> tuple[str, str]:
    "A page's title and its description: the title cell holds nothing else"
    notebook = nbformat.read(path, as_version=4)
    source = next(cell.source for cell in notebook.cells if cell.cell_type == 'markdown')
    return re.fullmatch(r'# (.+)\n\n> (.+)', source).groups()


def sections() -> dict[str, list[str]]:
    "The pages of the site by section, in the sidebar's order"
    contents = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    first = [entry for entry in contents if isinstance(entry, str)]
    return {'Start': first, **{entry['section']: entry['contents'] for entry in contents if isinstance(entry, dict)}}


def llms() -> str:
    "llms.txt: the site's pages with their descriptions, as links to their Markdown"
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    settings = config['DEFAULT']
    parts = [f"# {settings['title']}\n\n> {settings['description']}"]
    for section, pages in sections().items():
        lines = []
        for page in pages:
            name, description = title(ROOT/'nbs'/page)
            path = re.sub(r'(^|/)\d+_', r'\1', page).removesuffix('.ipynb')
            lines.append(f"- [{name}]({settings['doc_host']}{settings['doc_baseurl']}/{path}.html.md): {description}")
        parts.append('\n'.join([f'## {section}\n', *lines]))
    return '\n\n'.join(parts) + '\n'


if __name__ == '__main__':
    (ROOT/'README.md').write_text(readme(), encoding='utf-8')
    (ROOT/'nbs'/'llms.txt').write_text(llms(), encoding='utf-8')
