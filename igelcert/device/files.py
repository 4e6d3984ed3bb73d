"""Writing files so that a reader, and a power cut, sees them whole or not at all.

Every change of the file system goes through this module: it names what failed in a plain sentence,
and tests can cut the sequence of operations at any step.
"""

from __future__ import annotations

import errno
import os

from ..errors import CryptoError, StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

__all__ = [
    "Owner",
    "failure",
    "fsync_dir",
    "make_dir",
    "make_lasting_dir",
    "make_public_dir",
    "need_mount",
    "read",
    "remove_tree",
    "rename",
    "replace",
    "settle",
    "sweep",
    "symlink",
    "write_new",
]

_WHY = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EEXIST: "something else stands there",
    errno.EPERM: "no permission",
    errno.EFBIG: "the file would be too large",
    errno.ENOENT: "a part of the path is not there",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.ELOOP: "a symbolic link stands where none may",
}

Owner = tuple[int, int] | None  # uid and gid of what is written; None: the caller's


def failure(err: OSError, doing: str, path: str) -> StorageError:
    """The error in words. `doing`: "write", "read" ..."""
    why = _WHY.get(err.errno or 0) or err.strerror or "unknown error"
    hints = {
        errno.ENOSPC: "make room and run again; nothing was lost",
        errno.EROFS: "mount it writable and run again",
    }
    return StorageError(f"cannot {doing} {path}: {why}", hint=hints.get(err.errno or 0, ""))


def read(path: str, limit: int = 1 << 20) -> bytes:
    """A whole file of at most `limit` bytes; StorageError otherwise, FileNotFoundError when it is not there."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as err:
        raise failure(err, "read", path) from None
    if len(data) > limit:
        raise StorageError(f"{path} is larger than {limit} bytes")
    return data


def fsync_dir(path: str) -> None:
    """The names in a directory, on disk."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as err:
        raise failure(err, "flush", path) from None


def need_mount(path: str, root: str) -> None:
    """The place where the device keeps things must be there; inside --root it is a plain directory, made here."""
    if os.path.isdir(path):
        return
    if not root:
        raise StorageError(f"{path} is not there", hint="mount it, or make the directory")
    make_public_dir(path)


def make_public_dir(path: str) -> None:
    """The directory, and what is missing above it, 0755 under any umask; what is there stays as it is."""
    if os.path.isdir(path):
        return
    make_public_dir(os.path.dirname(path))
    umask = os.umask(0o022)  # not chmod afterwards: a cut in between would leave it as it is for ever
    try:
        os.mkdir(path, 0o755)
    except OSError as err:
        raise failure(err, "make the directory", path) from None
    finally:
        os.umask(umask)


def make_lasting_dir(path: str, mode: int, owner: Owner = None) -> None:
    """As make_dir; a new one is on disk when this returns."""
    known = os.path.isdir(path)
    make_dir(path, mode, owner)
    if not known:
        fsync_dir(os.path.dirname(path))


def make_dir(path: str, mode: int, owner: Owner = None) -> None:
    """The directory with exactly that mode; parents must be there. An existing one is adjusted."""
    try:
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            if not os.path.isdir(path) or os.path.islink(path):
                raise StorageError(f"{path} is there and is no directory", hint="move it away") from None
        os.chmod(path, mode)
        if owner:
            os.chown(path, *owner)
    except OSError as err:
        raise failure(err, "make the directory", path) from None


def settle(path: str, mode: int, owner: Owner) -> None:
    """Owner and mode of what is there, unless they are so already; the caller's owner where none is given."""
    uid, gid = owner or (os.geteuid(), os.getegid())
    try:
        info = os.lstat(path)
        if (info.st_uid, info.st_gid) != (uid, gid):
            os.lchown(path, uid, gid)
        if info.st_mode & 0o7777 != mode and not os.path.islink(path):
            os.chmod(path, mode)
    except OSError as err:
        raise failure(err, "change the mode of", path) from None


def write_new(path: str, write: bytes | Callable[[int], None], mode: int, owner: Owner = None) -> None:
    """A file that was not there, on disk when this returns. `write` may be a function of the descriptor,
    so that a private key goes from the core to the file without passing through Python."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if callable(write):
                write(handle)
            else:
                _write_all(handle, write)
            os.fchmod(handle, mode)
            if owner:
                os.fchown(handle, *owner)
            os.fsync(handle)
        finally:
            os.close(handle)
    except CryptoError as err:
        # the core names what the system said
        number = next((number for number in _WHY if os.strerror(number) in err.reasons), None)
        if number is None:
            raise
        raise failure(OSError(number, ""), "write", path) from None
    except OSError as err:
        raise failure(err, "write", path) from None


def copy_of(path: str) -> Callable[[int], None]:
    """For `write_new`: what is in the file `path`. It goes from file to file within the kernel, because it may be
    a private key."""

    def write(to: int) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            left = os.fstat(handle).st_size
            while left > 0 and (sent := os.sendfile(to, handle, None, left)):
                left -= sent
        finally:
            os.close(handle)

    return write


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def replace(path: str, write: bytes | Callable[[int], None], mode: int, owner: Owner = None) -> None:
    """As write_new, over whatever is there, in one rename."""
    temporary = f"{path}.new{os.getpid()}"
    try:
        with _swept(temporary):
            write_new(temporary, write, mode, owner)
            rename(temporary, path)
    except FileNotFoundError as err:
        raise failure(err, "write", path) from None


def _swept(path: str) -> AbstractContextManager[None]:
    """On any failure the temporary file goes."""
    import contextlib

    @contextlib.contextmanager
    def guard() -> Iterator[None]:
        with contextlib.suppress(OSError):
            os.unlink(path)
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise

    return guard()


def rename(old: str, new: str) -> None:
    """Atomic, and on disk when this returns."""
    try:
        os.rename(old, new)
        fsync_dir(os.path.dirname(new))
    except OSError as err:
        raise failure(err, "replace", new) from None


def symlink(target: str, path: str) -> None:
    """A symbolic link at `path`, replacing another link in one rename; never a file or directory."""
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.new{os.getpid()}")
    if os.path.lexists(path) and not os.path.islink(path):
        raise StorageError(
            f"{path} is there and is not ours", hint="move it away; igel-certs puts a link there"
        )
    try:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(target, temporary)
    except OSError as err:
        raise failure(err, "make the link", path) from None
    rename(temporary, path)


def _meant(entry: str) -> tuple[str, int]:
    """Of a temporary entry of `replace` or `symlink`: the name that it was to get (a link's with a dot before
    it) and the process that made it; ("", 0) for any other entry."""
    name, new, number = entry.rpartition(".new")
    return (name, int(number)) if new and number.isdecimal() and len(number) < 10 else ("", 0)


def sweep(directory: str, ours: Callable[[str, str], bool] = lambda _name, _path: True) -> None:
    """Removes the temporary files and links that runs left which were cut. ours: judges by the name that one was
    to get and the path that it has."""
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        return
    except OSError as err:
        raise failure(err, "read", directory) from None
    for entry in entries:
        path = os.path.join(directory, entry)
        name, process = _meant(entry)
        if not name or _at_work(process) or (os.path.isdir(path) and not os.path.islink(path)):
            continue
        if ours(name, path):
            remove_tree(path)


def _at_work(process: int) -> bool:
    """Does another process of that number run?"""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_dir(path: str) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            (_remove_dir if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)
    os.rmdir(path)


def remove_tree(path: str) -> None:
    """A file, link or directory with all below it; never follows a link. Not there is fine."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            _remove_dir(path)  # shutil would bring its compressors along
        elif os.path.lexists(path):
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as err:
        raise failure(err, "remove", path) from None
