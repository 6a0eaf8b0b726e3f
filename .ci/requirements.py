"""What an installed package requires on this machine, a line each, but for the other arguments."""

import sys
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

for line in requires(sys.argv[1]) or []:
    package = Requirement(line)
    wanted = package.marker is None or package.marker.evaluate({"extra": ""})
    if wanted and package.name not in sys.argv[2:]:
        print(f"{package.name}{package.specifier}")
