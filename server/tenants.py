"""What belongs to one tenant alone: its part of the prefix cache.

vLLM keys a cached block by its tokens, the generation, and the request's `cache_salt`. Two tenants with the same prompt
must not share entries: the second would see, by its speed and its `cached_tokens`, what the first has sent.
"""

import hashlib


def cache_salt(tenant: str | None, client_salt: str | None) -> str | None:
    """The salt vLLM gets: the tenant and, apart from it, the salt that the client itself chose.

    Without keys there is one tenant, and the client's salt stands as it is. No two pairs have the same salt: a tenant's
    name holds no NUL, so the text that is hashed can be cut in one way only.
    """
    if tenant is None:
        return client_salt
    return hashlib.sha256(f"{tenant}\0{client_salt or ''}".encode()).hexdigest()
