"""Operations of the networks in plain torch: the meaning that every kernel is compared with."""
