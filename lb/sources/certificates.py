"""Certificate files that native files name: read with them, and put in their places before anybody looks at them.

`cert_file: shop.crt` becomes `chain: -----BEGIN …`, so that what follows knows no files. The rule of files.py holds:
what cannot be read or does not fit never replaces what did. A key that is written a moment after its certificate, as
certbot does it, changes nothing until both are there. Each certificate and each bundle is read on its own: one that is
bad costs only itself.
"""

# Paths stay texts, as the user wrote them, and links must not be resolved on the way.
# ruff: noqa: PTH112, PTH118, PTH119, PTH120, PTH122, PTH208
from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec

from lb.certs.ocsp import check_response
from lb.certs.pem import CertificateError, has_key, read_bundle, read_pair
from lb.objects.meta import ObjectMeta
from lb.objects.view import NativeConfig, Stored
from lb.problems import Origin, Problem
from lb.sources.paths import Signature, is_passing, is_settled, note_way, os_problem, read_regular, signature_at

Content = Mapping[str, Any]
_Changes = dict[str, Any]
"""What is put in place of the names of files."""

MAX_FILE_BYTES = 64 << 20
"""Revocation lists can be large; what is larger is no such file."""

_PAIR_KEYS = ("cert_file", "key_file", "ocsp_file")
_CERTIFICATE_FILES = (".crt", ".pem", ".cer")
_PAIRS_OF_A_DIRECTORY = (("tls.crt", "tls.key"), ("fullchain.pem", "privkey.pem"))
"""How Kubernetes mounts a Secret of type kubernetes.io/tls, and how certbot writes a certificate."""


_KEPT = "what was read before stays in use"


class _Made(msgspec.Struct, frozen=True):
    """What was made of some files."""

    signatures: tuple[Signature | None, ...]
    """Of the files, just before they were read."""
    changes: _Changes | None
    """The newest that could be used; None while nothing could."""
    mistake: tuple[str, str, str] | None
    """(code, what, fix) of the newest reading."""
    settled: bool
    """Whether files with these signatures must have had this content."""


class Inlined(msgspec.Struct, frozen=True):
    """The objects of a file, with what the files hold that it names."""

    stored: Sequence[Stored]
    problems: tuple[Problem, ...]
    signatures: Mapping[str, Signature | None]
    """Of every file and directory that was looked at."""
    ways: frozenset[str]
    walked: frozenset[str]
    settled: bool
    """Whether none of them can have changed since without another date."""
    made: Mapping[tuple[str, ...], _Made]

    def is_stale(self) -> bool:
        """Whether one of the files may hold something else now."""
        return not self.settled or any(signature_at(path) != known for path, known in self.signatures.items())


def inline(stored: Sequence[Stored], before: Inlined | None, force: bool = False) -> Inlined | None:
    """The objects of a file with what they name read in; None when they name no files.

    `before` is what the same file gave last: what has the same dates is not read again unless `force`.
    """
    natives = [one for one in stored if isinstance(one.object, NativeConfig)]
    if not natives:
        return None
    reader = _Reader(before, force)
    new = [reader.inline(one) if isinstance(one.object, NativeConfig) else one for one in stored]
    return reader.finish(new) if reader.signatures else None


_NOTHING = Stored(NativeConfig(ObjectMeta(name="")), Origin())


class _Reader:
    """One reading of all files that one file names."""

    def __init__(self, before: Inlined | None, force: bool) -> None:
        self._known = before.made if before is not None else {}
        self._force = force
        self._made: dict[tuple[str, ...], _Made] = {}
        self._problems: list[Problem] = []
        self.signatures: dict[str, Signature | None] = {}
        self._ways: set[str] = set()
        self._walked: set[str] = set()
        self._settled = True
        self._stored = _NOTHING
        """The document that is read now."""

    def finish(self, stored: Sequence[Stored]) -> Inlined:
        settled = self._settled and all(made.settled for made in self._made.values())
        return Inlined(
            stored,
            tuple(self._problems),
            self.signatures,
            frozenset(self._ways),
            frozenset(self._walked),
            settled,
            self._made,
        )

    def inline(self, stored: Stored) -> Stored:
        """A native document with its files read in; itself when it names none."""
        self._stored = stored
        native = cast(NativeConfig, stored.object)
        content: dict[str, Any] = dict(native.content)
        readers = (
            ("certificates", self._certificates),
            ("listeners", self._listeners),
            ("upstreams", self._upstreams),
        )
        for key, read in readers:
            if isinstance(content.get(key), Mapping):
                content[key] = read(content[key])
        if all(content[key] is native.content[key] for key, _ in readers if key in content):
            return stored
        return Stored(msgspec.structs.replace(native, content=content), stored.origin)

    # -- Where files may be named

    def _certificates(self, entries: Content) -> Content:
        new: dict[str, Any] = {}
        for name, entry in entries.items():
            place = f"certificates.{name}"
            if isinstance(entry, Mapping) and isinstance(entry.get("directory"), str):
                new[name] = entry  # stays, so that listeners may name all that is in it
                new.update(self._directory(place, str(name), entry["directory"]))
            else:
                new[name] = self._certificate(place, entry) if isinstance(entry, Mapping) else entry
        return new if new != entries else entries

    def _listeners(self, entries: Content) -> Content:
        def of_host(place: str, host: Content) -> Content:
            return _below(host, "clients", lambda clients: self._bundles(f"{place}.clients", clients))

        def of_hosts(place: str, hosts: Content) -> Content:
            return _each(hosts, lambda name, host: of_host(f"{place}.{name}", host))

        def of_listener(name: str, listener: Content) -> Content:
            place = f"listeners.{name}.tls.hosts"
            return _below(listener, "tls", lambda tls: _below(tls, "hosts", lambda hosts: of_hosts(place, hosts)))

        return _each(entries, of_listener)

    def _upstreams(self, entries: Content) -> Content:
        def of_upstream(name: str, upstream: Content) -> Content:
            return _below(upstream, "tls", lambda tls: self._bundles(f"upstreams.{name}.tls", tls))

        return _each(entries, of_upstream)

    # -- What is read

    def _certificate(self, place: str, entry: Content) -> Content:
        """`cert_file` and `key_file`; a certificate file may hold its key, and one of the two may stand inline."""
        named = {key: self._path(entry[key]) for key in _PAIR_KEYS if isinstance(entry.get(key), str)}
        if not named:
            return entry
        chain_file, key_file = named.get("cert_file", ""), named.get("key_file", "")
        if not key_file and "key" not in entry:
            key_file = chain_file

        def read() -> _Changes:
            chain = _read_text(chain_file) if chain_file else str(entry.get("chain", ""))
            key = _read_text(key_file) if key_file else str(entry.get("key", ""))
            return _fitting(chain, key)

        changes = self._settle((place,), place, _different(chain_file, key_file), read)
        if changes is None:
            return entry
        return {**entry, **changes, **self._stapled(place, named.get("ocsp_file", ""), changes["chain"])}

    def _stapled(self, place: str, path: str, chain: str) -> _Changes:
        """The OCSP response of a certificate; without one that fits it is served all the same."""
        if not path:
            return {}

        def read() -> _Changes:
            response = _read_bytes(path)
            check_response(response, chain)
            return {"ocsp": base64.b64encode(response).decode()}

        # Of another chain nothing can be kept: its response is about another certificate.
        return self._settle((place, "ocsp", chain), f"{place}.ocsp_file", (path,), read) or {}

    def _directory(self, place: str, name: str, path: str) -> dict[str, Content]:
        """`site: {directory: /etc/lb/certs}` becomes `site/shop: {chain, key}` for shop.crt and shop.key in it."""
        found: dict[str, Content] = {}
        directory = self._path(path)
        try:
            pairs = list(self._pairs(directory))
        except OSError as error:
            problem = os_problem(directory, error)
            before = {key: made for key, made in self._known.items() if key[:2] == (self._name, place)}
            self._tell(place, (problem.code, problem.what, problem.fix), _KEPT if before else "")
            self._made.update(before)
            return {f"{name}/{key[2]}": made.changes for key, made in before.items() if made.changes and len(key) == 3}
        for pair in pairs:
            one = f"{name}/{pair.name}"
            files = _different(pair.chain_file, pair.key_file)
            changes = self._settle((place, pair.name), place, files, pair.read)
            if changes is not None and one not in found:
                found[one] = {**changes, **self._stapled(place, pair.ocsp_file, changes["chain"])}
        return found

    def _pairs(self, directory: str) -> Iterator[_Pair]:
        """The certificates of a directory and of the directories in it. OSError when it cannot be read."""
        whole = self._whole(directory)
        if whole is not None:
            yield whole
            return
        names = self._names(directory)
        known = frozenset(names)
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isdir(path):
                below = self._whole(path)
                if below is not None:
                    yield below
            elif name.endswith(_CERTIFICATE_FILES):
                yield _pair_of(path, os.path.splitext(name)[0], known)

    def _whole(self, directory: str) -> _Pair | None:
        """The certificate that a directory is, as Kubernetes or certbot make it."""
        names = self._names(directory)
        for chain, key in _PAIRS_OF_A_DIRECTORY:
            if chain in names and key in names:
                chain, key = os.path.join(directory, chain), os.path.join(directory, key)
                return _Pair(os.path.basename(directory.rstrip("/")), chain, key, "")
        return None

    def _names(self, directory: str) -> list[str]:
        """What stands in a directory, without hidden names: what `..data` holds is met by its links."""
        note_way(directory, self._ways)
        self._walked.add(os.path.abspath(directory))  # noqa: PTH100 - links must not be resolved
        at_ns = time.time_ns()
        self.signatures[directory] = signature_at(directory)
        self._settled &= _all_settled([self.signatures[directory]], at_ns)
        return sorted(name for name in os.listdir(directory) if not name.startswith("."))

    def _bundles(self, place: str, content: Content) -> Content:
        """`ca_file` and `crl_file`. One that cannot be used leaves no text: then nobody is trusted, rather than all."""
        new = content
        for key, check in (("ca", _check_authorities), ("crl", _check_lists)):
            named = content.get(f"{key}_file")
            if isinstance(named, str):
                path = self._path(named)

                def read(path: str = path, key: str = key, check: Callable[[str], None] = check) -> _Changes:
                    text = _read_text(path)
                    check(text)
                    return {key: text}

                changes = self._settle((place, key), f"{place}.{key}_file", (path,), read)
                new = new if changes is None else {**new, **changes}
        return new

    # -- Common to all

    def _settle(
        self, key: tuple[str, ...], place: str, files: tuple[str, ...], read: Callable[[], _Changes]
    ) -> _Changes | None:
        """What to put in place: of files that have not changed, or do not fit, what was found before."""
        for file in files:
            note_way(file, self._ways)
        at_ns = time.time_ns()
        signatures = tuple(signature_at(file) for file in files)
        self.signatures.update(zip(files, signatures, strict=True))
        key = (self._name, *key)
        known = self._known.get(key)
        if known is not None and not self._force and known.settled and known.signatures == signatures:
            made = known
        else:
            changes = known.changes if known is not None else None
            mistake = None
            settled = _all_settled(signatures, at_ns)
            try:
                changes = read()
            except OSError as error:
                problem = os_problem(str(error.filename or files[0]), error)
                mistake = (problem.code, problem.what, problem.fix)
                settled = settled and not is_passing(error)
            except CertificateError as error:
                mistake = ("LB1008", f"{error.what} ({', '.join(files)})", error.fix)
            made = _Made(signatures, changes, mistake, settled)
        self._made[key] = made
        if made.mistake is not None:
            self._tell(place, made.mistake, _KEPT if made.changes else "")
        return made.changes

    def _tell(self, place: str, mistake: tuple[str, str, str], why: str) -> None:
        code, what, fix = mistake
        self._problems.append(Problem(code, self._origin(place), what, why, fix, place))

    def _origin(self, place: str) -> Origin:
        """The native file's line of `place`, or of the nearest thing around it whose line is known."""
        lines = cast(NativeConfig, self._stored.object).lines
        while place and place not in lines:
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        origin = self._stored.origin
        return msgspec.structs.replace(origin, line=lines[place], column=0) if place else origin

    @property
    def _name(self) -> str:
        return self._stored.object.metadata.name

    def _path(self, path: str) -> str:
        """Relative to the native file."""
        return os.path.join(os.path.dirname(self._stored.origin.file), path)


class _Pair(NamedTuple):
    """A certificate in a directory. Empty names of files: there is none."""

    name: str
    chain_file: str
    key_file: str
    ocsp_file: str

    def read(self) -> _Changes:
        """CertificateError, OSError."""
        chain = _read_text(self.chain_file)
        if not self.key_file and not has_key(chain):
            what = f"there is no {os.path.splitext(self.chain_file)[0]}.key, and no private key in the file itself"
            raise CertificateError(what, "put the key beside it; keep authorities in another directory")
        return _fitting(chain, _read_text(self.key_file) if self.key_file else chain) | {
            "origin": {"file": self.chain_file}
        }


def _pair_of(path: str, stem: str, names: frozenset[str]) -> _Pair:
    """What belongs to a certificate file of a directory: shop.key or shop.pem.key, shop.ocsp or shop.pem.ocsp."""
    directory, name = os.path.split(path)

    def beside(suffix: str) -> str:
        found = next((one for one in (f"{stem}{suffix}", f"{name}{suffix}") if one in names), "")
        return os.path.join(directory, found) if found else ""

    return _Pair(stem, path, beside(".key"), beside(".ocsp"))


def _all_settled(signatures: Iterable[Signature | None], at_ns: int) -> bool:
    return all(one is None or is_settled(one, at_ns) for one in signatures)


def _different(*paths: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, paths)))


def _fitting(chain: str, key: str) -> _Changes:
    """A chain and its key, if they fit. CertificateError."""
    read_pair(chain, key)
    return {"chain": chain, "key": key}


def _check_authorities(text: str) -> None:
    if not read_bundle(text).certificates:
        raise CertificateError("there is no certificate in it", "put the PEM of the authorities there")


def _check_lists(text: str) -> None:
    if not read_bundle(text).lists:
        raise CertificateError("there is no revocation list in it", "put PEM (X509 CRL) there")


def _read_text(path: str) -> str:
    """A PEM file; whatever else stands in it is passed over. OSError, CertificateError."""
    return _read_bytes(path).decode("utf-8", "replace")


def _read_bytes(path: str) -> bytes:
    try:
        return read_regular(path, MAX_FILE_BYTES)
    except ValueError as error:
        raise CertificateError(str(error), "name a file that holds PEM") from None


def _each(entries: Content, change: Callable[[str, Content], Content]) -> Content:
    """A mapping with its mappings changed; itself when none of them is."""
    new = {name: change(str(name), entry) if isinstance(entry, Mapping) else entry for name, entry in entries.items()}
    return entries if all(new[name] is entries[name] for name in entries) else new


def _below(content: Content, key: str, change: Callable[[Content], Content]) -> Content:
    """A mapping with the mapping under `key` changed; itself when it is not."""
    below = content.get(key)
    if not isinstance(below, Mapping):
        return content
    new = change(below)
    return content if new is below else {**content, key: new}
