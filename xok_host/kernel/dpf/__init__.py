"""DPF: the merged filter trie that says whose packet this is (thesis 3.2 and 6.1)."""
