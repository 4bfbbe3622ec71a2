"""nn.LSTM, nn.GRU and nn.RNN, captured as the kernels that eager runs."""
