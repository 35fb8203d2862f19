"""The salt of the prefix cache: no two tenants share one, whatever salts their clients choose."""

from hypothesis import example, given
from hypothesis import strategies as st

from server.tenants import cache_salt

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)
SALTS = st.none() | st.text(min_size=1, max_size=10)


@example("a", "bc", "ab", "c")
@example("a", None, "b", "a")
@given(NAMES, SALTS, NAMES, SALTS)
def test_equal_salts_mean_the_same_tenant_and_the_same_choice(
    one: str, a: str | None, other: str, b: str | None
) -> None:
    assert (cache_salt(one, a) == cache_salt(other, b)) == ((one, a) == (other, b))


@given(NAMES, SALTS)
def test_vllm_takes_the_salt(name: str, salt: str | None) -> None:
    made = cache_salt(name, salt)
    assert made is not None and len(made) == 64 and made.isalnum()


@given(SALTS)
def test_without_keys_the_client_has_its_way(salt: str | None) -> None:
    assert cache_salt(None, salt) == salt
