"""Stands in for PyAV, which ComfyUI imports for video and sound. Every name in it exists and does nothing."""

import importlib.abc
import importlib.machinery
import sys
import types


class Nothing(types.ModuleType):
    __version__ = "0"
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        # Capital letters begin the names of classes, which are inherited from and caught as errors.
        found = type(name, (Exception,), {}) if name[0].isupper() else Nothing(f"{self.__name__}.{name}")
        setattr(self, name, found)
        return found


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of this name."""

    def find_spec(self, name, path=None, target=None):
        if name.startswith(f"{__name__}."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Nothing(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(Finder())
sys.modules[__name__].__class__ = Nothing
