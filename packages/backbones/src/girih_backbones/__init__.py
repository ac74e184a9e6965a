"""3D encoders, necks and audited weight transfer for medical imaging."""
