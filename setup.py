"""Packaging: every fact stands in settings.ini."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
extras = {key.removesuffix('_requirements'): cfg[key].split() for key in cfg if key.endswith('_requirements')}
extras['dev'] += sum((needed for extra, needed in extras.items() if extra != 'dev'), [])


def long_description() -> str:
    "README.md for a page elsewhere: relative links lead to the repository, pictures to their content"
    def absolute(link):
        start, path = link.groups()
        raw = path.endswith(('.png', '.jpg', '.svg', '.webp', '.gif'))
        return f"{start}{cfg['git_url']}/{'raw' if raw else 'blob'}/{cfg['branch']}/{path}"
    readme = (here/'README.md').read_text(encoding='utf-8')
    return re.sub(r'(\]\(|src="|href=")(?!https?:|#|mailto:)([^)"\s]+)', absolute, readme)


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=long_description(),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    project_urls={
        'Documentation': cfg['doc_host'] + cfg['doc_baseurl'],
        'Source': cfg['git_url'],
        'Changelog': f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md",
        'Issues': f"{cfg['git_url']}/issues",
    },
    keywords=cfg['keywords'].split(),
    classifiers=cfg['classifiers'].strip().splitlines(),
    license='Apache-2.0',
    license_files=['LICENSE', 'DATA_LICENCES.md'],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg['lib_path'], f"{cfg['lib_path']}.*"]),
    package_data={cfg['lib_path']: ['py.typed', 'shipped/*', '*/*.html', '*/*.css', '*/*.js']},
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
