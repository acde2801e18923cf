"""Channel: radio links. Fading and path loss, what noise or bit errors do to features, rates, and what a node knows of its links."""
