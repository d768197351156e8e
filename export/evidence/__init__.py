"""The evidence for people: the report's page, the model card, the signature."""

from __future__ import annotations

from convoy.contract.signature import CARD_FILE as CARD_FILE
from convoy.contract.signature import PAGE_FILE as PAGE_FILE
from convoy.contract.signature import SIGNATURE_FILE as SIGNATURE_FILE
from convoy.contract.signature import SignedBy as SignedBy
from convoy.contract.signature import open_key as open_key
from convoy.contract.signature import sign_bundle as sign_bundle
from convoy.contract.signature import verify_bundle as verify_bundle
from convoy.export.evidence.card import CardFacts as CardFacts
from convoy.export.evidence.card import render_card as render_card
from convoy.export.evidence.page import render_page as render_page
