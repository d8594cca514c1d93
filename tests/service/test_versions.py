from importlib.metadata import version

from service.versions import NOT_INSTALLED, version_of


def test_a_package_that_is_not_installed_has_no_version_and_fails_nothing() -> None:
    assert version_of("torch") == version("torch")
    assert version_of("no-such-package-as-this") == NOT_INSTALLED
