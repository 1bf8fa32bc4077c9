//! How a section is declared: struct, defaults, what is allowed and documentation in one place.

use crate::value::Given;

/// A section of `mlxd.toml`.
pub(crate) trait Section: Default {
    /// Its name in brackets.
    const NAME: &'static str;
    /// Its keys, in the order of the file.
    const KEYS: &'static [&'static str];
    /// Sets `key`.
    fn set(&mut self, key: &str, given: Given<'_>) -> Result<(), SetError>;
    /// Every key with its value, `None` when it is not set.
    fn show(&self) -> Vec<(&'static str, Option<toml::Value>)>;
}

/// Why a key was not set.
#[derive(Debug)]
pub(crate) enum SetError {
    /// There is no such key.
    UnknownKey,
    /// The rest of the sentence "must be …".
    MustBe(String),
}

/// Declares a section: `key: type = default, what is allowed;`.
macro_rules! section {
    (
        $(#[$meta:meta])*
        pub struct $name:ident in $section:literal {
            $( $(#[$doc:meta])* $key:ident : $type:ty = $default:expr, $allowed:expr; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $( $(#[$doc])* pub $key: $type, )* }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )* }
            }
        }

        impl $crate::section::Section for $name {
            const NAME: &'static str = $section;
            const KEYS: &'static [&'static str] = &[$( stringify!($key) ),*];

            fn set(
                &mut self,
                key: &str,
                given: $crate::value::Given<'_>,
            ) -> Result<(), $crate::section::SetError> {
                match key {
                    $( stringify!($key) => {
                        self.$key = $crate::value::read(given, &$allowed)
                            .map_err($crate::section::SetError::MustBe)?;
                        Ok(())
                    } )*
                    _ => Err($crate::section::SetError::UnknownKey),
                }
            }

            fn show(&self) -> Vec<(&'static str, Option<toml::Value>)> {
                vec![$( (stringify!($key), $crate::value::Value::show(&self.$key)) ),*]
            }
        }
    };
}
pub(crate) use section;
