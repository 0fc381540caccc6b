"""`python -m k24lab.integrations.epymarl PATH [--remove]`."""

from k24lab.integrations.epymarl.install import main

if __name__ == "__main__":
    main()
