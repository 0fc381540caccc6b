"""SMAX before any battle, without JaxMARL: the missing package, how JAX is set up, wrong options."""

import contextlib
import io
import sys
from types import SimpleNamespace

import pytest

from k24lab.envs import smax
from k24lab.envs.registry import make_env
from k24lab.errors import ConfigError


def stub_jax(**config) -> SimpleNamespace:
    settings = SimpleNamespace(**({"jax_platforms": None, "jax_compilation_cache_dir": None} | config))
    settings.update = lambda name, value: setattr(settings, name, value)
    return SimpleNamespace(config=settings)


@pytest.mark.parametrize("missing", ["jax", "jaxmarl"])
def test_a_missing_package_names_the_extra(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, "jax", stub_jax())
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"task 'smax/8m' needs JaxMARL \(.*{missing}.*pip install 'k24lab\[smax\]'"):
        smax._battle.__wrapped__("8m")


def test_jax_is_set_up_only_where_the_user_has_not(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax = stub_jax()
    smax._configure(jax)
    assert (jax.config.jax_platforms, jax.config.jax_compilation_cache_dir) == ("cpu", str(tmp_path / "k24lab" / "jax"))
    own = stub_jax(jax_platforms="cuda", jax_compilation_cache_dir="/own")
    smax._configure(own)
    assert (own.config.jax_platforms, own.config.jax_compilation_cache_dir) == ("cuda", "/own")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    jax = stub_jax()
    smax._configure(jax)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "home" / ".cache" / "k24lab" / "jax")


def test_an_import_that_resets_the_streams_changes_nothing():
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        mine = sys.stdout, sys.stderr, sys.__stdout__
        with smax._own_streams():
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # as an import of JaxMARL does
            print("about other packages")
        assert (sys.stdout, sys.stderr, sys.__stdout__) == mine
        print("mine")
    assert shown.getvalue() == "mine\n"


@pytest.mark.parametrize(
    "task, n_envs, message",
    [
        ("smax/3n", 1, "did you mean 'smax/3m'"),
        ("smax/3m:limit=3", 1, "unknown option 'limit'; did you mean 'episode_limit'"),
        ("smax/3m:scenario=8m", 1, "unknown option 'scenario'"),
        ("smax/3m:episode_limit=2.5", 1, "option episode_limit = 2.5 is a float, not an int"),
    ],
)
def test_bad_options_are_one_clear_error(task, n_envs, message):
    with pytest.raises(ConfigError, match=message):
        make_env(task, n_envs)
