"""Signatures on artifacts: rollout signs what passed its gate, the endpoint loads nothing else.

keys.py     the private key that signs, the folder of public keys that are trusted
sign.py     makes a signature, with OpenSSF's `model-signing`
verify.py   checks one, with `cryptography` alone

    artifacts/<kind>/<key>/signatures/<key id>.json   a Sigstore bundle over the exact bytes of manifest.json

The manifest names every file by its sha256, so its signature covers them all. The bundle is what the program
`model_signing` writes and reads, so that anybody can check it without Modelyard.
"""
