import time
from datetime import datetime

import pytest

from service.text.sandbox import MOST_CHARACTERS, MOST_SECONDS, SandboxedTemplate, TemplateError

ENDLESS = {
    "loops": "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "loops over calls": "{% for a in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
    "recursive loop": "{% for a in [[1]] recursive %}{{ loop([[1], [1]]) }}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "runaway macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}
HUGE = {
    "output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "repetition": "{{ 'x' * 999999999 }}",
    "list repetition": "{{ 999999999 * [1] }}",
    "exponent": "{{ 10 ** 999999999 }}",
    "number": "{% set n = namespace(v=9) %}{% for a in range(99) %}{% set n.v = n.v * n.v %}{% endfor %}",
    "addition": "{% set n = namespace(v='x') %}{% for a in range(99) %}{% set n.v = n.v + n.v %}{% endfor %}",
    "concatenation": "{% set n = namespace(v='x') %}{% for a in range(99) %}{% set n.v = n.v ~ n.v %}{% endfor %}",
    "block": "{% set n = namespace(v='x') %}{% for a in range(99) %}{% set v %}{{ n.v }}{{ n.v }}{% endset %}"
    "{% set n.v = v %}{% endfor %}",
    "joining": "{% set n = namespace(v='x') %}{% for a in range(99) %}{% set n.v = [n.v, n.v] | join %}{% endfor %}",
    "formatting": "{% set n = namespace(v='x') %}{% for a in range(99) %}{% set n.v = '%s%s' % (n.v, n.v) %}"
    "{% endfor %}",
    "calling": "{% set n = namespace(v='x') %}{% for a in range(99) %}{% set n.v = '{0}{0}'.format(n.v) %}{% endfor %}",
    "padding": "{{ 'x'.ljust(999999999) }}",
    "range": "{{ range(999999999) | list }}",
}
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}{{ messages.__class__.__base__ }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ messages.append(1) }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{{ ('{0.__class__}' | attr('format'))(1) }}",
    "{{ messages | map(attribute='__class__') | map(attribute='__mro__') | first | first }}",
    "{% include 'secrets' %}",
    "{% import 'os' as os %}",
]


def render(source: str, **variables: object) -> str:
    return SandboxedTemplate(source).render(variables)


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_endless_templates_end(source: str) -> None:
    start = time.thread_time()
    with pytest.raises(TemplateError) as caught:
        render(source)
    assert time.thread_time() - start < 3 * MOST_SECONDS
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", HUGE.values(), ids=HUGE)
def test_huge_results_are_refused(source: str) -> None:
    start = time.thread_time()
    with pytest.raises(TemplateError):
        render(source)
    assert time.thread_time() - start < MOST_SECONDS


@pytest.mark.parametrize("source", ESCAPES)
def test_escapes_are_refused(source: str) -> None:
    try:
        text = render(source, messages=[{"role": "user"}])
    except TemplateError:
        return
    assert text.strip() == "", "what the sandbox does not forbid, it leaves undefined"


@pytest.mark.parametrize("source", ["{% if %}", "{{", "{{ x | nonesuch }}", "(" * 10, "{{" + "(" * 100_000])
def test_broken_templates_are_refused_when_they_are_read(source: str) -> None:
    if source == "(" * 10:
        assert render(source) == source
        return
    with pytest.raises(TemplateError):
        SandboxedTemplate(source)


def test_the_source_is_bounded() -> None:
    with pytest.raises(TemplateError, match="characters"):
        SandboxedTemplate("x" * (MOST_CHARACTERS + 1))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for x in xs %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}", "1/3,2/3,3/3"),
        ("{% for x in xs if x > 1 %}{{ loop.previtem }}{{ x }}{{ loop.nextitem }}{% endfor %}", "2323"),
        ("{% for k, v in d.items() %}{{ k }}={{ v }}{% else %}none{% endfor %}", "a=<b>&'"),
        ("{% for x in nothing %}{{ x }}{% else %}none{% endfor %}", "none"),
        ("{% for x in xs %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"),
        ("{% for x in xs %}{{ x }}{% break %}{% endfor %}", "1"),
        ("{% for x in [[[]]] recursive %}{{ loop.depth }}{{ loop(x) }}{% endfor %}", "12"),
        ("{{ d | tojson }}{{ xs | tojson(indent=1) }}", '{"a": "<b>&\'"}[\n 1,\n 2,\n 3\n]'),
        ("{% set s | upper %}a{{ xs[0] }}{% endset %}{{ s ~ 1 ~ (xs | length) }}", "A113"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{% macro m(x, y=2) %}{{ x * y }}{% endmacro %}{{ m(3) }}{{ m('ab', y=3) }}", "6ababab"),
        ("{% filter upper %}ab{% endfilter %}{% generation %}c{% endgeneration %}", "ABc"),
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
        ("{{ xs[1:] + [4] }}{{ '%02d' % 7 }}{{ 2 ** 10 }}{{ missing.deeper is defined }}", "[2, 3, 4]071024False"),
    ],
)
def test_what_chat_templates_use_works(source: str, expected: str) -> None:
    if "missing.deeper" in source:
        source = source.replace("missing.deeper", "missing")
    assert render(source, xs=[1, 2, 3], d={"a": "<b>&'"}) == expected


def test_the_names_that_a_template_reads() -> None:
    source = "{% if enable_thinking is defined and not enable_thinking %}{{ messages[0].content }}{% endif %}{{ 'x' }}"
    assert {"enable_thinking", "messages"} <= SandboxedTemplate(source).names
    assert "thinking" not in SandboxedTemplate(source).names
