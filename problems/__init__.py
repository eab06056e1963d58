"""The problems shipped with kanpinn, written against its public interface only."""
