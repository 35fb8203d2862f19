"""A client of the admin app over a house, without an engine."""

import asyncio
from typing import Any

import httpx

from server.admin import PREFIX
from server.app import build_admin_app
from tests.server.house import House

TAR = {"content-type": "application/x-tar"}


class Admin:
    """A client of the admin app; every call waits until memory has settled."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.app = build_admin_app(house.service)
        self._runner = asyncio.Runner()
        self._runner.run(house.operations.start())

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def request() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                response = await http.request(method, PREFIX + path, **options)
            await self.house.operations.settle()
            return response

        return self._runner.run(request())

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self.ask("POST", path, json=fields)

    def upload(self, content: Any, **headers: str) -> httpx.Response:
        return self.ask("POST", "/generations", content=content, headers={**TAR, **headers})

    def states(self) -> dict[int, str]:
        return {one["generation"]: one["state"] for one in self.ask("GET", "/generations").json()["generations"]}

    def end_requests(self) -> None:
        async def end() -> None:
            self.house.requests.close()

        self._runner.run(end())

    def close(self) -> None:
        self._runner.close()


def code_of(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["message"] and error["type"] in ("invalid_request_error", "server_error")
    return str(error["code"])
