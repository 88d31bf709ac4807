"""PROXY headers: whatever the cut, the right client or a refusal, and never a byte too many."""

from __future__ import annotations

import ipaddress
import struct
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.proxying import (
    LOCAL,
    LOOK,
    PROXY,
    SIGNATURE,
    TCP4,
    TCP6,
    UNIX,
    UNSPEC,
    addresses,
    header,
    tlv,
    version_2,
)

from nbnet.acceptor import UNIX_PEER
from nbnet.notation import Target
from nbnet.proxy import Header, HeaderDecoder, ProxyError, Trusted, crc32c, parse_networks

quiet = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

PORTS = st.integers(0, 65535)
TLVS = st.lists(
    st.builds(tlv, st.integers(0, 255).filter(lambda kind: kind != 3), st.binary(max_size=40)),
    max_size=4,
)


def line(text: str) -> bytes:
    return text.encode() + b"\r\n"


def checked(data: bytes) -> bytes:
    """A header with its checksum as the last TLV."""
    size = struct.unpack_from("!H", data, 14)[0] + 7
    data = data[:14] + struct.pack("!H", size) + data[16:] + tlv(3, bytes(4))
    return data[:-4] + struct.pack("!I", crc32c(data))


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, Header]:
    """A proper header, and what it says."""
    port = draw(PORTS)
    four, six = draw(st.ip_addresses(v=4)), draw(st.ip_addresses(v=6))
    assert isinstance(six, ipaddress.IPv6Address)
    if six.ipv4_mapped:  # has a test of its own
        six = ipaddress.IPv6Address("2001:db8::1")
    tlvs = draw(TLVS)
    kind = draw(st.integers(0, 8))
    if kind == 0:
        text = f"PROXY TCP4 {four} 198.51.100.9 {port} 6789"
        return line(text), Header(Target(str(four), port))
    if kind == 1:
        text = f"PROXY TCP6 {six} 2001:db8::9 {port} 6789"
        return line(text), Header(Target(str(six), port))
    if kind == 2:
        words = draw(st.text("0123456789abcdefg :.", max_size=80))
        return line(f"PROXY UNKNOWN{' ' if words else ''}{words}"), Header(None)
    if kind == 3:
        block = draw(st.binary(max_size=300))
        return version_2(LOCAL, draw(st.integers(0, 255)), block), Header(None, local=True)
    if kind == 4:
        return version_2(PROXY, UNSPEC, draw(st.binary(max_size=300))), Header(None)
    if kind == 5:
        return version_2(PROXY, UNIX, addresses(UNIX, "/a", 0), tlvs), Header(UNIX_PEER)
    source = str(four) if kind == 6 else str(six)
    made = header(source, port, *tlvs)
    return checked(made) if draw(st.booleans()) else made, Header(Target(source, port))


def decode(stream: bytes, most: int = 1 << 20) -> tuple[Header | None, bytes]:
    """Read a header as a loop does, ``most`` bytes at a time; what is left of the stream."""
    decoder, found = HeaderDecoder(), None
    while found is None and stream:
        size = min(decoder.needs, most)
        assert size > 0
        found = decoder.feed(stream[:size])
        stream = stream[size:]
    return found, stream


@quiet
@given(pair=headers(), most=st.integers(1, 40), behind=st.binary(max_size=30))
def test_any_cut_gives_the_same_and_leaves_what_follows(
    pair: tuple[bytes, Header], most: int, behind: bytes
) -> None:
    data, said = pair
    assert decode(data + behind, most) == (said, behind)
    assert decode(data[:-1], most) == (None, b"")  # no header before its last byte


@quiet
@given(data=st.binary(max_size=300), start=st.sampled_from([b"", SIGNATURE, b"PROXY ", b"\r\n"]))
@example(b"", SIGNATURE + b"\x21\x11\x00\x0c" + bytes(12))
def test_whatever_comes_is_a_header_or_refused_alike_however_cut(data: bytes, start: bytes) -> None:
    def outcome(most: int) -> object:
        try:
            return decode(start + data, most)
        except ProxyError as error:
            return str(error)

    assert outcome(1 << 20) == outcome(1) == outcome(7)


def damage(seed: int) -> None:
    """Damage a header at random: it stays one, or is refused, in the same words however cut."""
    random = Random(seed)
    stream = bytearray(random.choice(SAMPLES))
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(stream))
        match random.randrange(3):
            case 0:
                stream[at] = random.choice([0, 1, 3, 10, 13, 32, 255, random.randrange(256)])
            case 1:
                del stream[at]
            case _:
                stream.insert(at, random.randrange(256))
    outcomes: set[object] = set()
    for most in (1, random.randint(2, 30), 1 << 20):
        try:
            found, rest = decode(bytes(stream), most)
        except ProxyError as error:
            outcomes.add(str(error))
        else:
            assert found is None or isinstance(found.peer, Target | str | None)
            outcomes.add((found, rest.hex()))
    assert len(outcomes) == 1, (seed, bytes(stream), outcomes)


SAMPLES = (
    LOOK,
    header(),
    header("2001:db8::7"),
    checked(header("192.0.2.7", 4000, tlv(4, b"padding"))),
    version_2(PROXY, UNIX, addresses(UNIX, "/a", 0)),
    line("PROXY TCP4 192.0.2.7 198.51.100.9 4000 6789"),
    line("PROXY TCP6 2001:db8::7 2001:db8::9 4000 6789"),
    line("PROXY UNKNOWN whatever"),
)


def test_damaged_headers() -> None:
    for seed in range(2_000):
        damage(seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_damaged_headers() -> None:
    for seed in range(2_000, 100_000):
        damage(seed)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"0", "no PROXY header where"),
        (b"\r\n0", "no PROXY header where"),
        (b"\r\n\r\n\0\r\nQUIT\r", "no PROXY header where"),
        (b"PROXIES", "no PROXY header where"),
        (b"\x16\x03\x01", "no PROXY header where"),  # TLS, at once
        (SIGNATURE + b"\x11\x11\x00\x0c", "version 1 of the header"),
        (SIGNATURE + b"\x22\x11\x00\x0c", "command 2"),
        (SIGNATURE + b"\x2f\x11\x00\x0c", "command 15"),
        (SIGNATURE + b"\x21\x10\x00\x0c", "protocol 0x10 are not known"),
        (SIGNATURE + b"\x21\x13\x00\x0c", "protocol 0x13 are not known"),
        (SIGNATURE + b"\x21\x41\x00\x0c", "protocol 0x41 are not known"),
        (SIGNATURE + b"\x21\x11\x00\x0b", "11 bytes of addresses, expected at least 12"),
        (SIGNATURE + b"\x21\x21\x00\x23", "35 bytes of addresses, expected at least 36"),
        (SIGNATURE + b"\x21\x31\x00\xd7", "215 bytes of addresses, expected at least 216"),
        (header("192.0.2.7", 1, b"\x04\x00"), "a TLV that is cut off"),
        (header("192.0.2.7", 1, b"\x04\x00\x02a"), "a TLV that is cut off"),
        (header("192.0.2.7", 1, tlv(3, b"abcd")), "the checksum is wrong"),
        (header("192.0.2.7", 1, tlv(3, b"abc")), "a checksum that is none"),
        (checked(header("192.0.2.7", 1, tlv(3, b"abcd"))), "or a second one"),
        (line("PROXY TCP4 192.0.2.7 192.0.2.9 1"), "names no two addresses"),
        (line("PROXY TCP4 192.0.2.7 192.0.2.9 1 2 3"), "names no two addresses"),
        (line("PROXY TCP4  192.0.2.7 192.0.2.9 1 2"), "names no two addresses"),
        (line("PROXY TCP5 192.0.2.7 192.0.2.9 1 2"), "names no two addresses"),
        (line("PROXY UNKNOWNS 0"), "names no two addresses"),
        (line("PROXY tcp4 192.0.2.7 192.0.2.9 1 2"), "names no two addresses"),
        (line("PROXY TCP4 192.0.2.07 192.0.2.9 1 2"), "an address that is none"),
        (line("PROXY TCP4 192.0.2.7 ::1 1 2"), "an address that is none"),
        (line("PROXY TCP6 192.0.2.7 ::1 1 2"), "an address that is none"),
        (line("PROXY TCP6 fe80::1%eth0 ::1 1 2"), "an address that is none"),
        ("PROXY TCP4 192.0.2.\u0667 192.0.2.9 1 2\r\n".encode(), "an address that is none"),
        (line("PROXY TCP4 192.0.2.7 192.0.2.9 65536 2"), "a port that is none"),
        (line("PROXY TCP4 192.0.2.7 192.0.2.9 1 002"), "a port that is none"),
        (line("PROXY TCP4 192.0.2.7 192.0.2.9 +1 2"), "a port that is none"),
        (line("PROXY TCP4 192.0.2.7 192.0.2.9 1 "), "a port that is none"),
        (b"PROXY TCP4\r\n192.0.2.7 192.0.2.9 1 2\r\n", "names no two addresses"),
        (b"PROXY TCP4 192.0.2.7 192.0.2.9 1 2\n", "does not end in CR LF"),
        (b"PROXY UNKNOWN" + b"x" * 200, "no end of line in 107 bytes"),
    ],
)
def test_what_is_no_header_is_refused(data: bytes, reason: str) -> None:
    for most in (1, 1 << 20):
        with pytest.raises(ProxyError, match=reason):
            decode(data, most)


def test_the_longest_line_is_taken_and_one_byte_more_is_not() -> None:
    longest = line("PROXY UNKNOWN " + "f" * 91)
    assert len(longest) == 107
    assert decode(longest + b"00001a") == (Header(None), b"00001a")
    with pytest.raises(ProxyError, match="107 bytes"):
        decode(line("PROXY UNKNOWN " + "f" * 92))


def test_an_ipv4_client_is_the_same_however_it_is_written() -> None:
    said = Header(Target("192.0.2.7", 4000))
    assert decode(header("::ffff:192.0.2.7", 4000))[0] == said
    assert decode(line("PROXY TCP6 ::ffff:c000:207 ::1 4000 1"))[0] == said
    assert decode(version_2(PROXY, TCP6 + 1, addresses(TCP6, "2001:db8::1", 1)))[0] == Header(
        Target("2001:db8::1", 1)
    )


def test_no_more_may_be_fed_than_is_needed() -> None:
    decoder = HeaderDecoder()
    with pytest.raises(ValueError, match="16 bytes are more than the 15 needed"):
        decoder.feed(LOOK)


def test_a_header_as_long_as_there_can_be() -> None:
    block = addresses(TCP4, "192.0.2.7", 4000)
    data = version_2(PROXY, TCP4, block, [tlv(4, bytes(65535 - len(block) - 3))])
    assert decode(data + b"x") == (Header(Target("192.0.2.7", 4000)), b"x")


@pytest.mark.parametrize(
    ("networks", "peer", "expected"),
    [
        ("10.0.0.0/8", Target("10.255.0.1", 1), True),
        ("10.0.0.0/8", Target("11.0.0.1", 1), False),
        ("10.0.0.0/8", Target("::1", 1), False),
        ("192.0.2.1, ::1", Target("::1", 1), True),
        ("192.0.2.1,::1", Target("192.0.2.1", 1), True),
        ("fe80::/10", Target("fe80::1%eth0", 1), True),
        ("fe80::/10", UNIX_PEER, False),
        ("unix", UNIX_PEER, True),
        ("unix", Target("127.0.0.1", 1), False),
        ("0.0.0.0/0", Target("203.0.113.5", 1), True),
    ],
)
def test_who_is_trusted(networks: str, peer: Target | str, *, expected: bool) -> None:
    trusted = Trusted(parse_networks(networks))
    assert trusted
    assert trusted(peer) is expected


@pytest.mark.parametrize("text", ["", "10.0.0.0/33", "localhost", "10.0.0.0/8,", "10.0.0.0/8;::1"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match="is no network: expected"):
        parse_networks(text)


def test_nobody_is_trusted_by_default() -> None:
    assert not Trusted(())
