"""Reads a layer with BitBake's own parser, as a program: JSON of the variables that are asked for on stdout.

    python bitbake.py LAYER RECIPE VALUES NAME...

VALUES is a JSON object of variables that are set before; NAME may hold ${PN}. BitBake from PyPI has the parser,
but not the classes of OpenEmbedded: those that the recipe inherits are empty here, and bitbake.conf is BASE.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import types
from pathlib import Path

# the wheel lacks the client of the hash server, which only a build speaks with
for name in ("hashserv", "hashserv.client"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["hashserv"].client = sys.modules["hashserv.client"]  # type: ignore[attr-defined]

import bb.data  # type: ignore[import-not-found]  # noqa: E402
import bb.data_smart  # type: ignore[import-not-found]  # noqa: E402
import bb.parse  # type: ignore[import-not-found]  # noqa: E402
import bb.siggen  # type: ignore[import-not-found]  # noqa: E402

# what meta/conf/bitbake.conf of OpenEmbedded says of these
BASE = {
    "PN": "${@bb.parse.vars_from_file(d.getVar('FILE'), d)[0]}",
    "PV": "${@bb.parse.vars_from_file(d.getVar('FILE'), d)[1]}",
    "BPN": "${PN}",
    "THISDIR": "${@os.path.dirname(d.getVar('FILE'))}",
    "prefix": "/usr",
    "bindir": "${prefix}/bin",
    "libdir": "${prefix}/lib",
    "nonarch_libdir": "${prefix}/lib",
    "datadir": "${prefix}/share",
    "sysconfdir": "/etc",
    "systemd_system_unitdir": "${nonarch_libdir}/systemd/system",
    "PYTHON_SITEPACKAGES_DIR": "${libdir}/python3.14/site-packages",
    "DISTRO_FEATURES": "",
    "S": "${EXTERNALSRC}",
    "FILES:${PN}": "${bindir}/* ${libdir}/lib*.so.* ${sysconfdir} ${datadir}/${BPN} ${libdir}/${BPN}/*",
}


def main() -> None:
    layer, recipe, values, *names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        classes = Path(folder) / "classes"
        classes.mkdir()
        for line in re.findall(r"^inherit (.*)$", Path(recipe).read_text(), re.MULTILINE):
            for word in ["base", *line.split()]:
                (classes / f"{word}.bbclass").touch()
        data = bb.data_smart.DataSmart()
        for key, value in {
            **BASE,
            "BBPATH": folder,
            "TOPDIR": folder,
            "LAYERDIR": layer,
            **json.loads(values),
        }.items():
            data.setVar(key, value)
        data.setVar("__bbclasstype", "recipe")
        bb.parse.siggen = bb.siggen.init(data)
        data = bb.parse.handle(f"{layer}/conf/layer.conf", data, True)
        read = bb.parse.handle(recipe, data)[""]
        bb.data.expandKeys(read)
        print(json.dumps({name: read.getVar(read.expand(name)) for name in names}))


if __name__ == "__main__":
    main()
