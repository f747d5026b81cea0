class RunPictures:
    def __init__(self,*a): pass
    def curves(self,rows): return []
    def sheet(self,*a): return []
