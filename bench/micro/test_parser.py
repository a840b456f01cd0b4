"""The HTTP/1 parser on its own. Each figure includes the call from Python and the result as Python values."""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

from lb._fastpath import testing

BROWSER = (
    b"GET /catalog/items/4711?sort=price&page=2 HTTP/1.1\r\nHost: shop.example.com\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari/537.36\r\n"
    b"Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-GB,en;q=0.7\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\nReferer: https://shop.example.com/catalog\r\n"
    b"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\nConnection: keep-alive\r\n\r\n"
)
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: app\r\nDate: Sun, 22 Nov 2026 22:04:56 GMT\r\nContent-Type: application/json\r\n"
    b"Cache-Control: private, max-age=0\r\nContent-Length: 128\r\n\r\n"
)


def test_a_browsers_request(benchmark: BenchmarkFixture) -> None:
    used, _ = benchmark(testing.parse_request, BROWSER)
    assert used == len(BROWSER)


def test_a_response(benchmark: BenchmarkFixture) -> None:
    used, _ = benchmark(testing.parse_response, RESPONSE)
    assert used == len(RESPONSE)


def test_a_target_with_everything_to_normalise(benchmark: BenchmarkFixture) -> None:
    assert benchmark(testing.normalize_target, b"/a//b/./c/%7Euser/../%41?q=/../") == (b"/a/b/c/A", b"q=/../")


def test_a_host(benchmark: BenchmarkFixture) -> None:
    assert benchmark(testing.normalize_host, b"Shop.Example.COM:8080") == b"shop.example.com"
