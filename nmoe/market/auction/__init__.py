"""Auction: who is served at which price (AERIA), and the auctions it is compared with."""
