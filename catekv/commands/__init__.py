"""The commands of ``catekv`` that live in no package of their own, one file each."""
