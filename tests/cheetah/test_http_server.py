"""The server on XIO over a wire in memory: hits, pipelines, cut requests, deadlines, losses, changes under way."""

from __future__ import annotations

import errno

import h11
import pytest
from http_wire import WALL, Wire

from netstack.cheetah.cache import WINDOW
from netstack.cheetah.dates import http_date
from netstack.cheetah.limits import HEAD_TIMEOUT, IDLE_TIMEOUT, MAX_CACHED, MAX_HEAD, MAX_PIPELINE
from netstack.cheetah.store import BufferDocument, MemoryStore

TEXT = bytes(range(256)) * 400
HUGE = bytes(range(251)) * 40_000  # more than two windows
GET = b"GET /text HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore({b"text": TEXT, b"small": b"tiny", b"empty": b"", b"index.html": b"<p>home", b"huge": HUGE})


@pytest.fixture
def wire(store: MemoryStore) -> Wire:
    return Wire(store)


def responses(data: bytes, *methods: bytes) -> list[tuple[int, bytes]]:
    """Status and content of each of the responses to as many requests, which must be all there is."""
    answers = []
    for method in methods or (b"GET",):
        peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        peer.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
        peer.send(h11.EndOfMessage())
        peer.receive_data(data)
        response = peer.next_event()
        assert isinstance(response, h11.Response), response
        content = b""
        while isinstance(event := peer.next_event(), h11.Data):
            content += event.data
        assert isinstance(event, h11.EndOfMessage), event
        answers.append((response.status_code, content))
        data = peer.trailing_data[0]
    assert data == b""
    return answers


def pins(store: MemoryStore, path: bytes) -> int:
    found = store.open(path)
    assert isinstance(found, BufferDocument)
    return found.pins


def test_first_answer_and_hits(wire: Wire) -> None:
    tcb = wire.connect()
    for hits in range(4):
        assert responses(wire.ask(tcb, GET)) == [(200, TEXT)]
        assert wire.cheetah.statistics()["hits"] == hits
    assert wire.cheetah.statistics()["responses"]["2xx"] == 4


def test_forms_do_not_mix(wire: Wire) -> None:
    tcb = wire.connect()
    head = b"HEAD /text HTTP/1.1\r\nHost: h\r\n\r\n"
    for _ in range(2):
        assert responses(wire.ask(tcb, head), b"HEAD") == [(200, b"")]
        assert responses(wire.ask(tcb, GET)) == [(200, TEXT)]
        assert responses(wire.ask(tcb, b"GET /text?query HTTP/1.1\r\nHost: h\r\n\r\n")) == [(200, TEXT)]
    for fields in (b"Connection: close\r\nHost: h", b"Connection: keep-alive\r\nHost: h"):
        other = wire.connect()
        text = wire.ask(other, b"GET /text HTTP/1.0\r\n" + fields + b"\r\n\r\n")
        assert b"\r\n" + fields.partition(b"\r\n")[0] + b"\r\n" in text
        assert (other in wire.client.ends) is (b"close" in fields)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_close_rides_on_the_answer(wire: Wire, version: bytes) -> None:
    request = b"GET /small HTTP/" + version + b"\r\nHost: h\r\nConnection: close\r\n\r\n"
    for _ in range(2):
        tcb = wire.connect()
        before = wire.to_client.number
        assert responses(wire.ask(tcb, request)) == [(200, b"tiny")]
        assert tcb in wire.client.ends
        assert wire.to_client.number == before + 1  # acknowledgement, head, page and FIN in one frame
        tcb.close()
        wire.advance(1)
    assert wire.cheetah.statistics()["connections"] == 0


def test_a_change_is_what_the_next_request_gets(wire: Wire, store: MemoryStore) -> None:
    tcb = wire.connect()
    for version in range(5):
        store.put(b"text", b"version %d" % version)
        for _ in range(2):
            assert responses(wire.ask(tcb, GET)) == [(200, b"version %d" % version)]
    store.remove(b"text")
    assert responses(wire.ask(tcb, GET))[0][0] == 404
    assert wire.cheetah.statistics()["cache_stale"] == 5


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_requests_that_come_in_pieces(wire: Wire, size: int) -> None:
    tcb = wire.connect()
    request = b"GET /small HTTP/1.1\r\nHost: h\r\nX-Long: " + b"x" * 90 + b"\r\n\r\n"
    answer = b""
    for at in range(0, len(request), size):
        assert answer == b""
        tcb.send_bytes(request[at : at + size])
        wire.run()
        answer = wire.take(tcb)
    assert responses(answer) == [(200, b"tiny")]
    answer = wire.ask(tcb, GET + request[:50]) + wire.ask(tcb, request[50:] + GET[:3]) + wire.ask(tcb, GET[3:])
    assert responses(answer, *[b"GET"] * 3) == [(200, TEXT), (200, b"tiny"), (200, TEXT)]


def test_pipelines_are_answered_in_order_and_bounded(wire: Wire) -> None:
    tcb = wire.connect()
    requests = [b"GET /%s HTTP/1.1\r\nHost: h\r\n\r\n" % (b"small", b"none", b"text")[i % 3] for i in range(90)]
    answers = responses(wire.ask(tcb, b"".join(requests)), *[b"GET"] * 90)
    assert [status for status, _ in answers] == [200, 404, 200] * 30
    assert [content for status, content in answers if status == 200] == [b"tiny", TEXT] * 30
    assert MAX_PIPELINE < 90


def test_a_pipeline_and_then_the_end(wire: Wire) -> None:
    tcb = wire.connect()
    tcb.send_bytes(GET * 40)
    tcb.close()
    wire.advance(1)
    assert responses(wire.take(tcb), *[b"GET"] * 40) == [(200, TEXT)] * 40
    assert tcb in wire.client.ends
    assert wire.cheetah.statistics()["connections"] == 0


def test_large_documents_go_window_by_window(wire: Wire, store: MemoryStore) -> None:
    assert len(HUGE) > 2 * WINDOW
    tcb = wire.connect()
    request = b"GET /huge HTTP/1.1\r\nHost: h\r\n\r\n"
    answer = wire.ask(tcb, request + GET)
    assert responses(answer, b"GET", b"GET") == [(200, HUGE), (200, TEXT)]
    assert pins(store, b"huge") == 0
    tcb.send_bytes(request + GET)
    tcb.close()
    wire.advance(1)
    assert responses(wire.take(tcb), b"GET", b"GET") == [(200, HUGE), (200, TEXT)]
    assert tcb in wire.client.ends


def test_a_large_document_that_changes_is_broken_off(wire: Wire, store: MemoryStore) -> None:
    tcb = wire.connect()
    tcb.send_bytes(b"GET /huge HTTP/1.1\r\nHost: h\r\n\r\n")
    for _ in range(8):
        while wire.to_server.frames:
            wire.server.feed(wire.to_server.frames.popleft())
        while wire.to_client.frames:
            wire.stack.feed(wire.to_client.frames.popleft())
    old = store.open(b"huge")
    store.put(b"huge", b"new")
    wire.advance(1)
    assert 0 < len(wire.take(tcb)) < len(HUGE)
    assert tcb in wire.client.reasons
    assert isinstance(old, BufferDocument) and old.pins == 0


@pytest.mark.parametrize("nth", [3, 4, 7])
def test_every_byte_arrives_when_frames_are_lost(wire: Wire, store: MemoryStore, nth: int) -> None:
    wire.to_client.lose = lambda number: number % nth == 0
    wire.to_server.lose = lambda number: number % (nth + 4) == 0
    for _ in range(3):
        tcb = wire.connect()
        tcb.send_bytes(b"GET /text HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        wire.advance(60, step=0.1)
        assert responses(wire.take(tcb)) == [(200, TEXT)]
        tcb.close()
    wire.advance(120, step=0.5)
    wire.cheetah.cache.clear()
    assert pins(store, b"text") == 0


def test_a_head_under_way_keeps_its_date(wire: Wire) -> None:
    tcb, other = wire.connect(), wire.connect()
    assert responses(wire.ask(tcb, GET)) == [(200, TEXT)]
    wire.to_client.lose = lambda number: True
    tcb.send_bytes(GET)
    wire.run()
    wire.to_client.lose = lambda number: False
    later = (wire.now - 1_000_000) // 1_000_000
    wire.now += 1_500_000  # too early for the retransmission: advance() has not been called
    wire.server.advance(wire.server.now)
    wire.cheetah.tick(WALL + (wire.now - 1_000_000) * 1000)
    fresh = wire.ask(other, GET)
    assert http_date(WALL // 10**9 + later + 1) in fresh or http_date(WALL // 10**9 + later + 2) in fresh
    wire.advance(5)
    resent = wire.take(tcb)
    assert responses(resent) == [(200, TEXT)]
    assert http_date(WALL // 10**9 + later) in resent
    assert wire.cheetah.statistics()["dates_renewed_by_copy"] == 1


def test_the_date_is_renewed(wire: Wire) -> None:
    tcb = wire.connect()
    for second in range(1, 4):
        wire.advance(1)
        answer = wire.ask(tcb, GET)
        assert any(http_date(WALL // 10**9 + second + late) in answer for late in (0, 1))
    assert wire.cheetah.statistics()["hits"] == 2


def test_refusals_end_the_connection(wire: Wire) -> None:
    for request, status in ((b"GET /\r\n\r\n", 400), (b"\x16\x03\x01", 400), (b"X" * (MAX_HEAD + 1), 414)):
        tcb = wire.connect()
        assert responses(wire.ask(tcb, request + GET))[0][0] == status
        assert tcb in wire.client.ends


def test_nothing_after_content_is_read_as_a_request(wire: Wire) -> None:
    tcb = wire.connect()
    smuggled = b"GET /small HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(GET) + GET
    assert responses(wire.ask(tcb, smuggled)) == [(200, b"tiny")]
    tcb.send_bytes(GET)
    wire.advance(1)
    assert wire.take(tcb) == b""


def test_a_request_that_does_not_end_times_out(wire: Wire) -> None:
    tcb = wire.connect()
    assert wire.ask(tcb, GET[:-2]) == b""
    wire.advance(HEAD_TIMEOUT / 2)
    assert wire.take(tcb) == b""
    wire.advance(HEAD_TIMEOUT / 2 + 1)
    assert responses(wire.take(tcb))[0][0] == 408
    assert tcb in wire.client.ends
    tcb.close()
    wire.advance(1)
    assert wire.cheetah.statistics()["connections"] == 0


def test_a_trickle_does_not_keep_a_connection(wire: Wire) -> None:
    tcb = wire.connect()
    for at in range(30):
        if tcb in wire.client.ends:
            break
        tcb.send_bytes(GET[:-2][at : at + 1])
        wire.advance(1)
    assert tcb in wire.client.ends
    assert at == pytest.approx(HEAD_TIMEOUT, abs=2)


def test_idle_connections_are_closed(wire: Wire) -> None:
    silent, used = wire.connect(), wire.connect()
    wire.advance(IDLE_TIMEOUT / 2, step=1)
    wire.ask(used, GET)
    wire.advance(IDLE_TIMEOUT / 2 + 1, step=1)
    assert silent in wire.client.ends
    assert used not in wire.client.ends
    assert wire.take(silent) == b""
    wire.advance(IDLE_TIMEOUT / 2 + 1, step=1)
    assert used in wire.client.ends


def test_a_client_that_stops_acknowledging_is_dropped(wire: Wire, store: MemoryStore) -> None:
    tcb = wire.connect()
    wire.ask(tcb, GET)
    wire.to_server.lose = lambda number: True
    wire.to_client.lose = lambda number: True
    wire.cheetah.cache.clear()
    wire.to_server.lose = lambda number: False
    tcb.send_bytes(GET)
    wire.run()
    wire.to_server.lose = lambda number: True
    assert pins(store, b"text") == 1 or pins(store, b"text") == 2
    wire.advance(3 * IDLE_TIMEOUT, step=1)
    assert wire.cheetah.statistics()["connections"] == 0
    wire.cheetah.cache.clear()
    assert pins(store, b"text") == 0


def test_the_cache_stays_bounded(wire: Wire, store: MemoryStore) -> None:
    tcb = wire.connect()
    for number in range(300):
        target = b"/" + b"/" * (number % 50) + b"small" if number % 2 else b"/%%%02X%s" % (b"s"[0], b"mall")
        assert responses(wire.ask(tcb, b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")) == [(200, b"tiny")]
    statistics = wire.cheetah.statistics()
    assert statistics["cached"] <= min(MAX_CACHED, 51)
    assert pins(store, b"small") == statistics["cached"]


def test_conditional_and_partial_answers(wire: Wire) -> None:
    tcb = wire.connect()
    tag = next(line for line in wire.ask(tcb, GET).split(b"\r\n") if line.startswith(b"ETag"))[6:]
    again = b"GET /text HTTP/1.1\r\nHost: h\r\nIf-None-Match: " + tag + b"\r\n\r\n"
    assert responses(wire.ask(tcb, again)) == [(304, b"")]
    part = b"GET /text HTTP/1.1\r\nHost: h\r\nRange: bytes=4090-9000\r\n\r\n"
    assert responses(wire.ask(tcb, part)) == [(206, TEXT[4090:9001])]
    assert responses(wire.ask(tcb, GET)) == [(200, TEXT)]
    assert responses(wire.ask(tcb, b"GET /empty HTTP/1.1\r\nHost: h\r\n\r\n")) == [(200, b"")]


def test_pins_that_ran_out_are_taken_from_the_cache(
    wire: Wire, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tcb = wire.connect()
    assert responses(wire.ask(tcb, GET)) == [(200, TEXT)]
    plain = BufferDocument.pin

    def scarce(self: BufferDocument, offset: int, length: int) -> None:
        if pins(store, b"text"):
            raise OSError(errno.EAGAIN, "no pins left")
        plain(self, offset, length)

    monkeypatch.setattr(BufferDocument, "pin", scarce)
    assert responses(wire.ask(tcb, b"GET /small HTTP/1.1\r\nHost: h\r\n\r\n")) == [(200, b"tiny")]
    assert pins(store, b"text") == 0
    assert responses(wire.ask(tcb, GET)) == [(200, TEXT)]
    monkeypatch.setattr(BufferDocument, "pin", lambda *_: (_ for _ in ()).throw(OSError(errno.EAGAIN, "never")))
    assert responses(wire.ask(tcb, b"GET /small?x HTTP/1.1\r\nHost: h\r\nAccept: x\r\n\r\n")) == [(200, b"tiny")]
    assert responses(wire.ask(tcb, b"GET // HTTP/1.1\r\nHost: h\r\n\r\n"))[0][0] == 503


def test_a_document_that_changes_between_open_and_pin(
    wire: Wire, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = BufferDocument.pin

    def late(self: BufferDocument, offset: int, length: int) -> None:
        monkeypatch.setattr(BufferDocument, "pin", plain)
        store.put(b"text", b"newer")
        raise OSError(errno.ESTALE, "changed")

    monkeypatch.setattr(BufferDocument, "pin", late)
    assert responses(wire.ask(wire.connect(), GET)) == [(200, b"newer")]


def test_failing_pages_are_our_fault(wire: Wire, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, offset: int, length: int) -> None:
        raise OSError(5, "disk")

    monkeypatch.setattr(BufferDocument, "pin", fail)
    tcb = wire.connect()
    assert responses(wire.ask(tcb, GET))[0][0] == 500
    monkeypatch.undo()
    assert responses(wire.ask(tcb, GET)) == [(200, TEXT)]
